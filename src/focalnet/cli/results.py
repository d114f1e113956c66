"""What ``focalnet predict`` prints and writes of each kind of result."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focalnet.errors import ConfigError, DataError
from focalnet.files import write

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image

    from focalnet.inference.predictor import Noun
    from focalnet.models import Model


class Results:
    """Gathers what was found in pictures, and writes it: pictures as they come, lists of all at the end.

    Args:
        folder: where to; None to only count.
        model: what the lists call it.
        ids: numbers of images and categories in COCO's form; None for a model that names whole pictures.
    """

    def __init__(self, folder: Path | None, model: str, ids: Ids | None) -> None:
        self.folder, self.model, self.ids = folder, model, ids
        self.predictions: list[dict[str, Any]] = []
        self.objects: list[dict[str, Any]] = []
        self.panoptic: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}

    def add(self, result: Noun, name: str) -> None:
        """Takes in a result; ``name`` is what its files are called."""
        entry = result.to_dict()
        if self.ids is not None:
            entry["image_id"] = self.ids.image(Path(str(result.path)), len(self.predictions) + 1)
        if self.folder is not None:
            entry["picture"] = str(result.save(self.folder / f"{name}-prediction.png"))
            self._add_map(result, name, entry)
        self.predictions.append(entry)

    def _add_map(self, result: Noun, name: str, entry: dict[str, Any]) -> None:
        from focalnet.inference import map_files
        from focalnet.metrics.coco import coco_results
        from focalnet.results import Classification, Detections, SemanticMap

        if isinstance(result, Classification):
            return
        assert self.folder is not None
        assert self.ids is not None
        if isinstance(result, Detections):
            self.objects += coco_results(result, entry["image_id"], self.ids.category_ids)
        elif isinstance(result, SemanticMap):
            entry["labels"] = str(map_files.save_labels(result, self.folder / f"{name}.labels.png"))
        else:
            file = map_files.save_segments(result, self.folder / f"{name}.panoptic.png")
            entry["ids"] = str(file)
            size = {"height": entry["height"], "width": entry["width"]}
            self.panoptic["images"].append({"id": entry["image_id"], "file_name": Path(str(result.path)).name, **size})
            found = map_files.panoptic_entry(result, entry["image_id"], file.name, self.ids.category_ids)
            self.panoptic["annotations"].append(found)

    def write(self) -> str:
        """Writes the lists, and says what is in the folder."""
        assert self.folder is not None
        written: dict[str, Any] = {"model": self.model, "predictions": self.predictions}
        files: dict[str, Any] = {"predictions.json": written}
        if self.ids is not None:
            written["categories"] = self.ids.categories()
            if self.ids.kind in ("detection", "instance"):
                files["detections.json"] = self.objects
            if self.ids.kind == "panoptic":
                files["panoptic.json"] = {**self.panoptic, "categories": self.ids.categories()}
        for name, content in files.items():
            write(self.folder / name, json.dumps(content, indent=2, ensure_ascii=False).encode())
        return f"wrote {len(self.predictions)} pictures and {' and '.join(files)} to {self.folder}"


class Ids:
    """The numbers of images and categories in COCO's form: those of an annotation file, or counted from 1.

    Args:
        network: a detector or segmenter.
        annotations: of the same classes; COCO's panoptic form for a panoptic model.

    Raises:
        ConfigError: annotations for a semantic model, whose label maps have no such numbers.
        DataError: a file of other classes, or none of annotations.
    """

    def __init__(self, network: Model[Any, Any], annotations: Path | None) -> None:
        #: "detection", "semantic", "instance" or "panoptic".
        self.kind: str = network.config.output
        count = network.config.num_classes
        self.file, self.names = annotations, network.class_names or tuple(f"class {i}" for i in range(count))
        self.things = network.config.things if self.kind == "panoptic" else None
        self.image_ids: dict[str, int] = {}
        self.category_ids = tuple(range(1, count + 1))
        if annotations is not None:
            self._read(annotations)

    def _read(self, annotations: Path) -> None:
        from focalnet.data.datasets.coco import read_coco
        from focalnet.data.datasets.coco_panoptic import read_panoptic

        if self.kind == "semantic":
            raise ConfigError("--annotations is for objects and panoptic maps: a label map holds classes from 0")
        coco = read_panoptic(annotations) if self.kind == "panoptic" else read_coco(annotations)
        if coco.class_names != self.names:
            raise DataError(f"{annotations}: its categories are not the {len(self.names)} classes of the model")
        self.category_ids = coco.category_ids
        self.image_ids = {Path(image.file_name).name: image.image_id for image in coco.images}

    def image(self, path: Path, place: int) -> int:
        """Of a picture; ``place`` counts from 1."""
        if self.file is None:
            return place
        if path.name not in self.image_ids:
            raise DataError(f"{self.file}: names no image {path.name}")
        return self.image_ids[path.name]

    def categories(self) -> list[dict[str, Any]]:
        """The list ``categories`` of COCO's form."""
        listed: list[dict[str, Any]] = [
            {"id": i, "name": name} for i, name in zip(self.category_ids, self.names, strict=True)
        ]
        if self.things is not None:
            for label, category in enumerate(listed):
                category["isthing"] = int(label < self.things)
        return listed


def text(result: Noun) -> str:
    """The file, and below it a line for each class, or how many objects there are of each."""
    from focalnet.results import Classification, Detections, SemanticMap

    if isinstance(result, Classification):
        ranked = zip(result.scores, result.names, strict=True)
        return "\n".join([str(result.path), *(f"  {100 * score:5.1f} %  {name}" for score, name in ranked)])
    if isinstance(result, SemanticMap):
        return _shares(result.path, [(share, result.name(label)) for label, share in result.shares().items()])
    if isinstance(result, Detections):
        counts = Counter(result.name(label) for label in result.labels.tolist())
        objects = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "no objects"
        return f"{result.path}\n  {objects}"
    areas: Counter[int] = Counter()
    for segment in result.segments:
        areas[segment.label] += segment.area
    things = Counter(segment.label for segment in result.segments if segment.is_thing)
    rows = [
        (area / result.ids.numel(), result.name(label) + (f" ({things[label]})" if things[label] else ""))
        for label, area in areas.most_common()
    ]
    return _shares(result.path, rows)


def _shares(path: str | None, rows: list[tuple[float, str]]) -> str:
    """A line for each class; those that can hardly be seen share one."""
    lines = [f"  {100 * share:5.1f} %  {name}" for share, name in rows if share >= 0.0005]
    rest = ", ".join(name for share, name in rows if share < 0.0005)
    return "\n".join([str(path), *lines, *([f"  < 0.1 %  {rest}"] if rest else [])])


def frame(result: Noun) -> Image:
    """A frame of a video with the prediction drawn on it, of the size that it had."""
    from focalnet import visualize
    from focalnet.results import Detections, PanopticMap, SemanticMap

    ways: dict[type, Callable[..., Image]] = {
        Detections: visualize.draw_detections,
        SemanticMap: visualize.draw_semantic,
        PanopticMap: visualize.draw_panoptic,
    }
    return ways[type(result)](result, as_frame=True)
