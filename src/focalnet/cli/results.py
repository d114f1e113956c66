"""The files that ``focalnet predict`` writes: a drawing of each result, and lists of all results."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focalnet.errors import ConfigError, DataError
from focalnet.files import write

if TYPE_CHECKING:
    from focalnet.models import Model
    from focalnet.results import Result

logger = logging.getLogger(__name__)


class Results:
    """Collects results and writes them: drawings and label maps at once, the lists of all results at the end.

    Args:
        folder: output folder; None to write nothing.
        model: its name in the lists.
        ids: COCO ids of images and categories; None for a classifier.
    """

    def __init__(self, folder: Path | None, model: str, ids: Ids | None) -> None:
        self.folder, self.model, self.ids = folder, model, ids
        self.predictions: list[dict[str, Any]] = []
        self.coco: dict[str, list[dict[str, Any]]] = {}

    def add(self, result: Result, name: str) -> None:
        """Adds a result; the names of its files start with ``name``."""
        entry = result.to_dict()
        if self.ids is not None:
            entry["image_id"] = self.ids.image(Path(str(result.path)), len(self.predictions) + 1)
        if self.folder is not None:
            entry["picture"] = str(result.save(self.folder / f"{name}-prediction.png"))
            entry |= result.write_maps(self.folder, name)
            if self.ids is not None:
                for key, entries in result.coco_entries(entry["image_id"], self.ids.category_ids, name).items():
                    self.coco.setdefault(key, []).extend(entries)
        self.predictions.append(entry)

    def write(self) -> str:
        """Writes the lists; returns a message with the names of the files."""
        assert self.folder is not None
        written: dict[str, Any] = {"model": self.model, "predictions": self.predictions}
        files: dict[str, Any] = {"predictions.json": written}
        if self.ids is not None:
            written["categories"] = self.ids.categories()
            if "detections" in self.coco:
                files["detections.json"] = self.coco["detections"]
            if "annotations" in self.coco:
                files["panoptic.json"] = {**self.coco, "categories": self.ids.categories()}
        for name, content in files.items():
            write(
                self.folder / name, json.dumps(content, indent=2, ensure_ascii=False).encode(errors="backslashreplace")
            )
        return f"wrote {len(self.predictions)} images and {' and '.join(files)} to {self.folder}"


class Ids:
    """COCO ids of images and categories: those of an annotation file, or counted from 1.

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
        self.category_ids: tuple[int | str, ...] = tuple(range(1, count + 1))
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
                if names != self.names:
                    listing = read_listing(annotations, keep_root=keep_root)
                    images = list(listing.images.values())
                    names, self.category_ids = listing.class_names, listing.category_ids
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
