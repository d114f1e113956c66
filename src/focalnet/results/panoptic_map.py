"""The segment of each pixel of an image."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as Pillow

from focalnet import visualize
from focalnet.errors import require
from focalnet.results.base import (
    Result,
    as_array,
    briefly,
    class_name,
    masks_to_supervision,
    percent,
    run_lengths,
    share_lines,
)

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """One segment of a panoptic map: an object, or all stuff of a class.

    Args:
        id: its number in the map, from 1.
        label: class index.
        is_thing: an object, and not stuff.
        score: 0 to 1.
        area: pixels.
    """

    id: int
    label: int
    is_thing: bool
    score: float
    area: int


@dataclass(frozen=True, eq=False, repr=False)
class PanopticMap(Result):
    """Every pixel of the original image belongs to one segment, or to none.

    It is a sequence of its segments; ``mask(segment)`` are the pixels of one.

    Args:
        ids: ``(height, width)``, int32, numbers of segments; 0 where there is none.
        segments: what they are.
        names: of all classes, by index; empty where unknown.
        image: the image itself, if it was kept; not part of equality.
        path: the file that the image was read from, if any.
    """

    ids: Tensor
    segments: tuple[Segment, ...]
    names: tuple[str, ...] = ()
    image: Image | None = field(default=None, repr=False, compare=False)
    path: str | None = None

    table_columns = ("id", "label", "name", "is_thing", "score", "area")

    def __len__(self) -> int:
        return len(self.segments)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.segments)

    def __getitem__(self, index: int) -> Segment:
        return self.segments[index]

    def mask(self, segment: Segment) -> Tensor:
        """The pixels of a segment, ``(height, width)``, bool."""
        return self.ids == segment.id

    def _brief(self) -> str:
        height, width = self.ids.shape
        counts = Counter(self.name(segment.label) for segment in self.segments)
        segments = briefly([f"{count} {name}" for name, count in counts.most_common()]) or "no segments"
        return f"{segments}; {width} x {height}"

    def table_rows(self) -> list[dict[str, Any]]:
        """A row for each segment."""
        rows = [{**asdict(segment), "name": self.name(segment.label)} for segment in self.segments]
        return [{column: row[column] for column in self.table_columns} for row in rows]

    def to_torchvision(self) -> Any:
        """Returns the numbers of segments as ``tv_tensors.Mask``, ``(height, width)``, int32."""
        return require("torchvision.tv_tensors", "train").Mask(self.ids)

    def to_supervision(self) -> Any:
        """Returns ``supervision.Detections`` with a mask for each segment, and the box around it.

        Raises:
            MissingDependency: supervision is not installed.
        """
        masks = [(one.label, self.name(one.label), self.mask(one), one.score) for one in self.segments]
        return masks_to_supervision(masks, self.ids.shape)

    def to_fiftyone(self) -> Any:
        """Returns ``fiftyone.Segmentation`` of the class of each pixel plus 1; 0 is none.

        Raises:
            MissingDependency: FiftyOne is not installed.
        """
        labels = np.zeros((int(self.ids.max()) if self.ids.numel() else 0) + 1, dtype=np.uint16)
        for segment in self.segments:
            if segment.id < len(labels):
                labels[segment.id] = segment.label + 1
        return require("fiftyone", "fiftyone").Segmentation(mask=labels[as_array(self.ids)])

    def name(self, label: int) -> str:
        """The name of a class, ``"class 3"`` where it is unknown."""
        return class_name(self.names, label)

    def to_dict(self, *, masks: bool = False) -> dict[str, Any]:
        segments: list[dict[str, Any]] = [{**asdict(s), "name": self.name(s.label)} for s in self.segments]
        if masks:
            ids = as_array(self.ids)
            for one in segments:  # one by one: all masks at once are as many times the image
                (one["segmentation"],) = run_lengths(ids[None] == one["id"])
        height, width = self.ids.shape
        return {"path": self.path, "height": height, "width": width, "segments": segments}

    def summary(self) -> list[str]:
        """Returns a line for each class: its share of the pixels, its name, and how many objects it has."""
        return share_lines(
            (share, self.name(label) + (f" ({things})" if things else "")) for label, share, things in self._classes()
        )

    def draw(self, *, legend: bool = True, as_frame: bool = False) -> Image:
        """Lays the segments over the image, those of one class in shades of one color, named; the rest is dark.

        Args:
            legend: list the classes below the image: how many objects, or which share of it. Without, images of one
                size stay of one.
            as_frame: keep the size of the image, and draw no legend: all frames of a video have one size.

        Raises:
            ConfigError: the result has no image.
        """
        pixels = math.prod(self.ids.shape)
        entries = [
            (label, f"{self.name(label)}  {f'({things})' if things else percent(share)}")
            for label, share, things in self._classes()
        ]
        return visualize.draw_label_map(
            self._canvas(),
            as_array(self.ids),
            [visualize.Area(s.id, s.label, self.name(s.label), s.area / pixels) for s in self.segments],
            legend=entries if legend else None,
            names=self.names,
            as_frame=as_frame,
        )

    def save_ids(self, path: str | Path) -> Path:
        """Writes the segment of each pixel as a PNG in COCO's form: its id is R + 256 G + 65536 B, 0 is none.

        Args:
            path: where to, ending in ``.png``; missing folders are made.

        Raises:
            FocalNetError: the file cannot be written.
        """
        bytes_HW4 = as_array(self.ids)[..., None].astype("<u4").view(np.uint8)
        return visualize.save_image(Pillow.fromarray(np.ascontiguousarray(bytes_HW4[..., :3])), path)

    def to_coco(self, image_id: Any, file_name: str, category_ids: Sequence[Any]) -> dict[str, Any]:
        """Returns the annotation of the image in COCO's panoptic form: which segments are in its PNG.

        Args:
            image_id: of the image.
            file_name: of the PNG.
            category_ids: by label.
        """
        ids = as_array(self.ids)
        segments = []
        for segment in self.segments:
            rows, columns = np.nonzero(ids == segment.id)
            if len(rows):
                left, top = int(columns.min()), int(rows.min())
                segments.append({
                    "id": segment.id,
                    "category_id": category_ids[segment.label],
                    "area": len(rows),
                    "bbox": [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top],
                    "iscrowd": 0,
                })  # fmt: skip
        return {"image_id": image_id, "file_name": file_name, "segments_info": segments}

    def write_maps(self, folder: Path, name: str) -> dict[str, str]:
        """Writes the map of segments; see ``Result.write_maps``."""
        return {"ids": str(self.save_ids(folder / _ids_file(name)))}

    def coco_entries(self, image_id: Any, category_ids: Sequence[Any], name: str) -> dict[str, list[dict[str, Any]]]:
        """Returns the lists of ``panoptic.json``."""
        height, width = self.ids.shape
        path = Path(str(self.path))
        file_name = f"{name}{path.suffix}" if Path(name).name == path.stem else str(path)
        image = {"id": image_id, "file_name": file_name, "height": height, "width": width}
        return {"images": [image], "annotations": [self.to_coco(image_id, _ids_file(name), category_ids)]}

    def _classes(self) -> list[tuple[int, float, int]]:
        """Label, share of the pixels and number of objects of each class, the largest share first."""
        areas: Counter[int] = Counter()
        for segment in self.segments:
            areas[segment.label] += segment.area
        things = Counter(segment.label for segment in self.segments if segment.is_thing)
        return [(label, area / math.prod(self.ids.shape), things[label]) for label, area in areas.most_common()]


def _ids_file(name: str) -> str:
    return f"{name}.panoptic.png"
