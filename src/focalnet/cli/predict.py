"""``focalnet predict``: what do these pictures show, and what is where in them?"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from focalnet.cli import DEFAULT_MODEL
from focalnet.errors import ConfigError, DataError, ImageError
from focalnet.files import write

if TYPE_CHECKING:
    from focalnet.inference import Predictor
    from focalnet.structures import Classification, Detections


class OnError(str, Enum):
    """What to do with a picture that cannot be read."""

    RAISE = "raise"
    SKIP = "skip"


def predict(
    paths: Annotated[
        list[str], typer.Argument(metavar="FILES|FOLDERS|GLOBS...", help="Pictures; with a detector also films.")
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="A name of 'focalnet models', or a weights file.")] = (
        DEFAULT_MODEL
    ),
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for pictures with the result drawn on them, predictions.json and detections.json."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Classes shown, best first.")] = 5,
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Objects below are left out; 0 to evaluate.")] = 0.3,
    tile: Annotated[int | None, typer.Option(min=32, help="Look for objects in tiles of so many pixels.")] = None,
    overlap: Annotated[float, typer.Option(help="Share of a tile that its neighbour also covers.")] = 0.25,
    flip: Annotated[bool, typer.Option("--flip", help="Look for objects in the mirrored picture, too.")] = False,
    short_side: Annotated[
        list[int] | None, typer.Option(help="Look for objects at this size in pixels; may be repeated.")
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(help="COCO annotations that give the pictures' ids and categories in detections.json."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; default: a GPU if there is one.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures that go through the network at once.")] = None,
    on_error: Annotated[OnError, typer.Option(help="A picture that cannot be read: stop, or leave it out.")] = (
        OnError.RAISE
    ),
) -> None:
    """Names what pictures show, or with a detector finds the objects in them: classes and their scores."""
    from focalnet.data.images import find

    files = find(paths)  # before torch: a mistyped path is told at once

    from focalnet import zoo
    from focalnet.inference import Looks, Predictor
    from focalnet.inference.video import is_video
    from focalnet.models import Detector
    from focalnet.visualize import unique_names

    network = zoo.load(model)
    detects = isinstance(network, Detector)
    looks = Looks(tile=tile, overlap=overlap, flip=flip, short_sides=tuple(short_side or ()))
    size = batch_size or (2 if detects else 32)  # a detector's pictures are large
    predictor = Predictor(network, device, batch_size=size, top_k=top, min_score=min_score, looks=looks)
    ids = _Ids(annotations, predictor.class_names) if detects else None
    films = [file for file in files if is_video(file)]
    if films and (out is None or not detects):
        raise ConfigError(f"{films[0]}: a film needs a detector, and --out for the film with the objects drawn on it")
    names = dict(zip(map(str, files), unique_names(files), strict=True))
    pictures = [file for file in files if file not in films]
    skip = _report_skipped if on_error is OnError.SKIP else None
    predictions: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for result in predictor.stream(pictures, skip=skip):
        typer.echo(_text(result))
        entry = result.to_dict()
        if ids is not None:
            entry["image_id"] = ids.image(Path(str(result.path)), len(predictions) + 1)
            found += ids.results(result, entry["image_id"])
        if out is not None:
            entry["picture"] = str(result.save(out / f"{names[str(result.path)]}-prediction.png"))
        predictions.append(entry)
    for film in films:
        assert out is not None
        typer.echo(f"{film}\n  {_follow(predictor, film, out / f'{names[str(film)]}-prediction.mp4')}")
    if not predictions and not films:
        raise ImageError(f"none of the {len(files)} pictures could be read")
    if out is not None and predictions:
        written = {"model": model, "predictions": predictions}
        if ids is not None:
            written["categories"] = ids.categories()
            _write_json(found, out / "detections.json")
        _write_json(written, out / "predictions.json")
        also = " and detections.json" if ids is not None else ""
        typer.echo(f"wrote {len(predictions)} pictures and predictions.json{also} to {out}")


class _Ids:
    """The numbers of pictures and categories in COCO's result form: those of an annotation file, or counted from 1."""

    def __init__(self, annotations: Path | None, class_names: tuple[str, ...]) -> None:
        self.file, self.class_names = annotations, class_names
        self.image_ids: dict[str, int] = {}
        self.category_ids = tuple(range(1, len(class_names) + 1))
        if annotations is not None:
            from focalnet.data.datasets.coco import read_coco

            coco = read_coco(annotations)
            if coco.class_names != class_names:
                raise DataError(f"{annotations}: its categories are not the {len(class_names)} classes of the model")
            self.category_ids = coco.category_ids
            self.image_ids = {Path(image.file_name).name: image.image_id for image in coco.images}

    def image(self, path: Path, place: int) -> int:
        if self.file is None:
            return place
        if path.name not in self.image_ids:
            raise DataError(f"{self.file}: names no image {path.name}")
        return self.image_ids[path.name]

    def results(self, found: Any, image_id: int) -> list[dict[str, Any]]:
        from focalnet.metrics.coco import coco_results

        return coco_results(found, image_id, self.category_ids)

    def categories(self) -> list[dict[str, Any]]:
        return [{"id": i, "name": name} for i, name in zip(self.category_ids, self.class_names, strict=True)]


def _text(result: Classification | Detections) -> str:
    """The file, and below it a line for each class, or how many objects there are of each."""
    from focalnet.structures import Classification

    if isinstance(result, Classification):
        ranked = zip(result.scores, result.names, strict=True)
        return "\n".join([str(result.path), *(f"  {100 * score:5.1f} %  {name}" for score, name in ranked)])
    counts = Counter(result.name(label) for label in result.labels.tolist())
    objects = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "no objects"
    return f"{result.path}\n  {objects}"


def _follow(predictor: Predictor, film: Path, target: Path) -> Path:
    """Writes a film with the objects found in each of its frames drawn on it."""
    from focalnet.inference.video import frame_rate, frames, write_video
    from focalnet.visualize import draw_detections

    def drawn() -> Iterator[Any]:
        results: Iterable[Any] = predictor.stream(frames(film))
        for result in results:
            yield draw_detections(result)

    return write_video(drawn(), target, frame_rate(film))


def _report_skipped(error: ImageError) -> None:
    typer.echo(f"skipped: {error}", err=True)


def _write_json(content: Any, path: Path) -> None:
    write(path, json.dumps(content, indent=2, ensure_ascii=False).encode())
