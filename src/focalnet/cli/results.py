"""What ``focalnet predict`` writes of its results: a drawing of each, and lists of all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focalnet.errors import ConfigError, DataError
from focalnet.files import write

if TYPE_CHECKING:
    from focalnet.models import Model
    from focalnet.results import Result


class Results:
    """Gathers results, and writes them: drawings and maps as they come, lists of all at the end.

    Args:
        folder: where to; None to only count.
        model: what the lists call it.
        ids: numbers of images and categories in COCO's form; None for a classifier.
    """

    def __init__(self, folder: Path | None, model: str, ids: Ids | None) -> None:
        self.folder, self.model, self.ids = folder, model, ids
        self.predictions: list[dict[str, Any]] = []
        self.coco: dict[str, list[dict[str, Any]]] = {}

    def add(self, result: Result, name: str) -> None:
        """Takes in a result; names of its files start with ``name``."""
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
        """Writes the lists, and says what is in the folder."""
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
        from focalnet.data.formats.coco import read_coco
        from focalnet.data.formats.coco_panoptic import read_panoptic

        if self.kind == "semantic":
            raise ConfigError("--annotations is for objects and panoptic maps: a label map holds classes from 0")
        coco = read_panoptic(annotations) if self.kind == "panoptic" else read_coco(annotations)
        if coco.class_names != self.names:
            raise DataError(f"{annotations}: its categories are not the {len(self.names)} classes of the model")
        self.category_ids = coco.category_ids
        self.image_ids = {Path(image.file_name).name: image.image_id for image in coco.images}

    def image(self, path: Path, place: int) -> int:
        """The id of an image; ``place`` counts from 1."""
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
