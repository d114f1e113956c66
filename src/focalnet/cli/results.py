"""The files that ``focalnet predict`` writes: a drawing of each result, and lists of all results."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from focalnet.errors import ConfigError, DataError, FocalNetError
from focalnet.files import write

if TYPE_CHECKING:
    from focalnet.models import Model
    from focalnet.results import Result

logger = logging.getLogger(__name__)

#: What the names of files that belong to an image end in.
ENDINGS = ("-prediction.png", "-prediction.mp4", ".labels.png", ".panoptic.png")


class Results:
    """Collects results and writes them: drawings and label maps at once, the lists of all results at the end.

    Until then ``predictions.jsonl`` keeps what is finished, whatever happens: the first line is a header, each other
    line the entries of one image in the lists.

    Args:
        folder: output folder; None to write nothing.
        model: its name in the lists.
        ids: COCO ids of images and categories; None for a classifier.
    """

    def __init__(self, folder: Path | None, model: str, ids: Ids | None) -> None:
        self.folder, self.ids = folder, ids
        self.header: dict[str, Any] = {"model": model} | ({"categories": ids.categories()} if ids else {})
        self.predictions: list[dict[str, Any]] = []
        self.coco: dict[str, list[dict[str, Any]]] = {}
        self._lines: TextIO | None = None

    @property
    def lines(self) -> Path:
        """The file that keeps what is finished."""
        assert self.folder is not None
        return self.folder / "predictions.jsonl"

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within, an error says where what was finished before it is."""
        try:
            yield
        except FocalNetError as error:
            if self._lines is None:
                raise
            done = f"{len(self.predictions)} image{'s' * (len(self.predictions) != 1)}"
            raise type(error)(f"{error}; {self.lines} keeps the results of the {done} before it") from error
        finally:
            if self._lines is not None:
                self._lines.close()

    def add(self, result: Result, name: str) -> None:
        """Adds a result; the names of its files start with ``name``.

        Raises:
            FocalNetError: it cannot be written; the lists have nothing of it then.
        """
        entry = result.to_dict()
        coco: dict[str, list[dict[str, Any]]] = {}
        if self.ids is not None:
            entry["image_id"] = self.ids.image(Path(str(result.path)), len(self.predictions) + 1)
        if self.folder is not None:
            entry["picture"] = str(result.save(self.folder / f"{name}-prediction.png"))
            entry |= result.write_maps(self.folder, name)
            if self.ids is not None:
                coco = result.coco_entries(entry["image_id"], self.ids.category_ids, name)
            self._write_line({"prediction": entry, "coco": coco})
        self.predictions.append(entry)
        for key, entries in coco.items():
            self.coco.setdefault(key, []).extend(entries)

    def write(self) -> str:
        """Writes the lists; returns a message with the names of the files."""
        assert self.folder is not None
        header = dict(self.header)
        written: dict[str, Any] = {"model": header.pop("model"), "predictions": self.predictions, **header}
        files: dict[str, Any] = {"predictions.json": written}
        if "detections" in self.coco:
            files["detections.json"] = self.coco["detections"]
        if "annotations" in self.coco:
            files["panoptic.json"] = {**self.coco, **header}
        for name, content in files.items():
            write(self.folder / name, _json(content, indent=2))
        self.lines.unlink(missing_ok=True)
        return f"wrote {len(self.predictions)} images and {' and '.join(files)} to {self.folder}"

    def _write_line(self, content: dict[str, Any]) -> None:
        try:
            if self._lines is None:
                keep_earlier(self.lines)
                self._lines = self.lines.open("w", encoding="ascii")
                self._lines.write(json.dumps(self.header) + "\n")
            self._lines.write(json.dumps(content) + "\n")
            self._lines.flush()
        except OSError as error:
            raise FocalNetError(f"cannot write {self.lines}: {error.strerror}; make room") from error


def keep_earlier(path: Path) -> None:
    """Renames a file that a run before this one did not get to finish: ``predictions.1.jsonl``, ``.2``, ..."""
    number = 1
    while path.exists():
        target = path.with_suffix(f".{number}{path.suffix}")
        number += 1
        if not target.exists():
            os.replace(path, target)


def refuse_to_overwrite(files: Iterable[Path], names: Iterable[str], folder: Path) -> None:
    """Raises ConfigError where what is written for an image would take the place of an image to predict."""
    inputs = {os.path.realpath(file): file for file in files}
    inside = os.path.realpath(folder)
    for name in names:
        for ending in ENDINGS:
            if overwritten := inputs.get(os.path.join(inside, name + ending)):
                raise ConfigError(f"{overwritten} is an image to predict, and would be written over: another --out")


def _json(content: Any, **options: Any) -> bytes:
    """JSON in UTF-8. Bytes of a file name that are not UTF-8 are escaped; Python reads the same name from them."""
    return json.dumps(content, ensure_ascii=False, **options).encode(errors="backslashreplace")


class Ids:
    """COCO ids of images and categories: those of an annotation file.

    Without a file, images count from 1, and categories have the ids that the model was trained with, or count from 1 if
    these are unknown.

    Args:
        network: a detector or segmenter.
        annotations: a COCO file with the same classes; for a panoptic model, a COCO panoptic file.
        files: the images. A whole path in the annotations is matched before the bare file name.

    Raises:
        ConfigError: annotations for a semantic model, whose label maps hold no ids.
        DataError: the file has other classes, is not an annotation file, or does not name an image unambiguously.
    """

    def __init__(self, network: Model[Any, Any], annotations: Path | None, files: Sequence[Path] = ()) -> None:
        #: "detection", "semantic", "instance" or "panoptic".
        self.output: str = network.config.output
        count = network.config.num_classes
        self.file, self.names = annotations, network.class_names or tuple(f"class {i}" for i in range(count))
        self.things = network.config.things if self.output == "panoptic" else None
        self.image_ids: dict[str, int | str] = {}
        from focalnet.weights.labels import ids_of

        known = network.card.category_ids if network.card else ()
        self.category_ids: tuple[int | str, ...] = known or ids_of(self.names) or tuple(range(1, count + 1))
        if annotations is not None:
            self._read(annotations, [path.as_posix() for path in files])

    def _read(self, annotations: Path, files: Sequence[str]) -> None:
        from focalnet.data.formats.coco import read_listing
        from focalnet.data.formats.coco_panoptic import read_panoptic
        from focalnet.data.readers.file_names import match_names

        if self.output == "semantic":
            raise ConfigError("--annotations is for objects and panoptic maps: label maps hold class indices, not ids")
        names: tuple[str, ...] = ()
        if self.output == "panoptic":
            panoptic = read_panoptic(annotations)
            images, names, self.category_ids = panoptic.images, panoptic.class_names, panoptic.category_ids
        else:
            for keep_root in (False, True):  # a model may have been trained with a category that has no objects
                if sorted(names) != sorted(self.names):
                    listing = read_listing(annotations, keep_root=keep_root)
                    images = list(listing.images.values())
                    names, self.category_ids = listing.class_names, listing.category_ids
            if len(set(names)) == len(names) and sorted(names) == sorted(self.names):  # perhaps in another order
                self.category_ids = tuple(self.category_ids[names.index(name)] for name in self.names)
                names = self.names
        if names != self.names:
            raise DataError(f"{annotations}: its categories are not the {len(self.names)} classes of the model")
        matches = match_names([image.file_name for image in images], files, base_names=True)
        exact = match_names([image.file_name for image in images], files).files
        if loose := [(name, file) for name, file in matches.files.items() if name not in exact]:
            name, file = loose[0]
            text = "%s: %d images have its ids by the name of the file alone, e.g. %s that of %s"
            logger.warning(text, annotations, len(loose), file, name)
        ids = {image.file_name: image.image_id for image in images}
        self.image_ids = {file: ids[name] for name, file in matches.files.items()}
        for file in files:
            if file in self.image_ids:
                continue
            for name, candidates in matches.ambiguous.items():
                if file in candidates:
                    raise DataError(f"{annotations}: {name}: {matches.why_ambiguous(name)}")
            raise DataError(f"{annotations}: has no image {file}")

    def image(self, path: Path, number: int) -> int | str:
        """The id of an image, which is the ``number``-th, counted from 1."""
        return number if self.file is None else self.image_ids[path.as_posix()]

    def categories(self) -> list[dict[str, Any]]:
        """The list ``categories`` of a COCO file."""
        categories: list[dict[str, Any]] = [
            {"id": i, "name": name} for i, name in zip(self.category_ids, self.names, strict=True)
        ]
        if self.things is not None:
            for label, category in enumerate(categories):
                category["isthing"] = int(label < self.things)
        return categories
