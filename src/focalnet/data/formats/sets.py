"""Finds the annotations of a data set of objects: COCO files, or those of other tools."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from focalnet.data.formats.coco import AnnotationFormat, empty_root, find_annotations, is_coco, load, usual_files
from focalnet.data.formats.cvat import CvatSet
from focalnet.data.formats.label_studio import LabelStudioSet
from focalnet.data.formats.labelme import LabelmeSet
from focalnet.data.formats.object_set import ObjectSet, Written
from focalnet.data.formats.open_images import OpenImagesSet
from focalnet.data.formats.outlines import polygons
from focalnet.data.formats.via import ViaSet
from focalnet.data.formats.voc import VocSet
from focalnet.data.formats.yolo import YoloSet
from focalnet.data.readers.collection import Split
from focalnet.errors import DataError

#: Tried in this order.
OBJECT_SETS: tuple[type[ObjectSet], ...] = (
    YoloSet,
    VocSet,
    CvatSet,
    LabelmeSet,
    ViaSet,
    LabelStudioSet,
    OpenImagesSet,
)


def find_set(path: Path) -> ObjectSet | None:
    """Opens a folder or file if it is a data set of objects in another format than COCO.

    Raises:
        DataError: it cannot be read.
    """
    if not path.exists():
        return None
    return next((found for kind in OBJECT_SETS if (found := kind.find(path)) is not None), None)


@dataclass(frozen=True)
class Annotations:
    """The annotations of a split.

    Args:
        path: the annotation file or folder, for messages.
        whole: the data set has no splits, so these are all of its annotations.
        set: the data set, if its format is not COCO.
        split: the name of the split in that data set; None for all of it.
    """

    path: Path
    whole: bool = False
    set: ObjectSet | None = None
    split: str | None = None

    def read(self) -> Written:
        """Reads the annotations in the COCO format.

        Raises:
            DataError: it cannot be read.
        """
        return Written(load(self.path)) if self.set is None else self.set.content(self.split)


def find_split(
    root: Path, split: Split, wanted: str | None = None, format: AnnotationFormat = "instances"
) -> Annotations | None:
    """Finds the annotations of a split: a COCO file with a usual name, else those of another tool.

    Args:
        root: the folder of the data set.
        split: which one.
        wanted: the path of its annotations relative to the root, where it is not usual.
        format: COCO's for objects, or its panoptic format, which no other tool writes.

    Raises:
        DataError: the wanted file is not there, or several could be meant, or something cannot be read.
    """
    if wanted is not None:
        found = find_set(root / wanted) if format == "instances" and (root / wanted).exists() else None
        if found is None:
            file = find_annotations(root, split, wanted, format)
            return None if file is None else Annotations(file)
        own = found.name_of(split) if found.splits else None
        return Annotations(found.splits[own] if own else root / wanted, not found.splits, found, own)
    if (file := find_annotations(root, split, None, format)) is not None:
        return Annotations(file)
    if any(usual_files(root, other, format) for other in get_args(Split)):
        return None
    if (single := find_single(root, format)) is not None:
        return Annotations(single, whole=True)
    found = find_set(root) if format == "instances" else None
    if found is None:
        return None
    if not found.splits:
        return Annotations(root, whole=True, set=found)
    own = found.name_of(split)
    return None if own is None else Annotations(found.splits[own], set=found, split=own)


def find_single(root: Path, format: AnnotationFormat = "instances") -> Path | None:
    """Finds the only COCO file of a data set without splits, in the root or in ``annotations``.

    Raises:
        DataError: there are several.
    """
    files = [file for pattern in ("*.json", "annotations/*.json") for file in sorted(root.glob(pattern))]
    found = [file for file in files if is_coco(file, format)]
    named = [file for file in found if file.name.startswith("instances")]
    found = named if len(named) == 1 else found  # beside it CVAT writes one of keypoints
    if len(found) > 1:
        names = ", ".join(str(file.relative_to(root)) for file in found[:5])
        raise DataError(
            f"{root}: several annotation files, and none is named as that of a split: {names}; choose by "
            "data.train_annotations and data.val_annotations"
        )
    return found[0] if found else None


def root_has_objects(content: Mapping[str, Any], splits: Iterable[Annotations]) -> bool:
    """Whether a category that is empty here, and the supercategory of all others, has objects in another split."""
    if empty_root(content) is None:
        return False
    return any(empty_root(load(path)) is None for path in {one.path for one in splits if one.set is None})


def has_outlines(content: Mapping[str, Any]) -> bool:
    """Whether any object in a COCO file has a usable outline."""
    outlines = (one.get("segmentation") for one in content["annotations"] if isinstance(one, dict))
    return any(polygons(outline) or isinstance(outline, dict) for outline in outlines)
