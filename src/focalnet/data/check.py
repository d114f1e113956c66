"""Is a detection data set fit to train on? What is wrong with it, before training starts, entry by entry."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from focalnet.card import Preprocessing
from focalnet.data.datasets.coco import CocoFile, Problem, list_problems, read_coco
from focalnet.data.datasets.collection import SYNONYMS, Part, check_exists
from focalnet.data.datasets.pictures import Pictures, find_pictures
from focalnet.data.detection_samples import DetectionDataset
from focalnet.errors import DataError, ImageError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckedPart:
    """One part of a detection data set whose annotations have been read and whose pictures were looked for.

    Args:
        coco: the annotations; images that are not there are left out.
        pictures: where the files are.
        problems: all that was found, with those of ``coco``.
    """

    coco: CocoFile
    pictures: Pictures
    problems: list[Problem]

    def objects(self) -> dict[str, int]:
        """Number of objects by class name, crowd regions left out."""
        label_of = self.coco.label_of()
        found = (a for image in self.coco.images for a in image.annotations if not a["iscrowd"])
        counts = Counter(label_of[a["category_id"]] for a in found)
        return {name: counts[label] for label, name in enumerate(self.coco.class_names)}


Form: TypeAlias = Literal["instances", "panoptic"]


def find_annotations(root: Path, part: Part, wanted: str | None = None, form: Form = "instances") -> Path | None:
    """The annotation file of a part: ``annotations/instances_train*.json``, ``train/_annotations.coco.json``, ...

    Args:
        root: the folder of the data set.
        part: which part.
        wanted: its path relative to the root, where it is none of these.
        form: COCO's for objects, or for segments: then it is ``annotations/panoptic_train*.json``.

    Raises:
        DataError: the wanted file is not there, or several could be meant.
    """
    check_exists(root)
    if wanted is not None:
        if not (root / wanted).is_file():
            raise DataError(f"{root / wanted}: no such annotation file")
        return root / wanted
    for name in SYNONYMS[part]:
        for pattern in _patterns(name) if form == "instances" else _panoptic_patterns(name):
            found = sorted(root.glob(pattern))
            if len(found) > 1:
                names = ", ".join(str(path.relative_to(root)) for path in found)
                raise DataError(
                    f"{root}: several annotation files for {part}: {names}; choose by data.{part}_annotations"
                )
            if found:
                return found[0]
    return None


def _patterns(name: str) -> Iterator[str]:
    for suffix in ("", "20[0-9][0-9]"):  # as COCO's years
        yield f"annotations/instances_{name}{suffix}.json"
        yield f"annotations/{name}{suffix}.json"
        yield f"{name}{suffix}.json"
    yield from (f"{name}/_annotations.coco.json", f"{name}/annotations.json", f"{name}/{name}.json")


def _panoptic_patterns(name: str) -> Iterator[str]:
    for suffix in ("", "20[0-9][0-9]"):
        yield from (f"annotations/panoptic_{name}{suffix}.json", f"panoptic_{name}{suffix}.json")


def check_part(root: Path, annotations: Path, *, masks: bool, images: str | None = None) -> CheckedPart:
    """Reads a part's annotations and looks for its pictures.

    Args:
        root: the folder of the data set.
        annotations: the annotation file.
        masks: whether each object must have a segmentation.
        images: the folder or tar file of the pictures, relative to the root; default: looked for.

    Raises:
        DataError: the annotations cannot be read at all, or no picture is found.
    """
    coco = read_coco(annotations, masks=masks)
    pictures = find_pictures(root, annotations, [image.file_name for image in coco.images], images)
    missing = [image for image in coco.images if image.file_name not in pictures]
    absent = {id(image) for image in missing}
    coco.images[:] = [image for image in coco.images if id(image) not in absent]
    problems = [
        Problem(str(annotations), f"image {i.image_id} ({i.file_name})", f"no such file {pictures.path(i.file_name)}")
        for i in missing
    ]
    return CheckedPart(coco, pictures, coco.problems + problems)


class Checked(Protocol):
    """Any part of a data set in which problems were looked for."""

    @property
    def problems(self) -> list[Problem]: ...


def decide(part: Checked, on_error: Literal["raise", "skip"]) -> None:
    """Stops at a data set with problems, or warns that what is wrong with it is left out.

    Raises:
        DataError: there are problems and they are not to be skipped.
    """
    if not part.problems:
        return
    found = "; ".join(list_problems(part.problems))
    if on_error == "raise":
        raise DataError(f"{found}. focalnet check-data lists all; data.on_error skip leaves such entries out")
    logger.warning("left out what is wrong with the annotations: %s", found)


def check_pictures(part: CheckedPart) -> list[Problem]:
    """Decodes every picture: the broken ones, and those of another size than their annotations are for."""
    samples = DetectionDataset(part.coco, part.pictures, Preprocessing(max_size=1), masks=False)
    problems = []
    for index, image in enumerate(samples.images):
        try:
            samples.read(index)
        except ImageError as error:
            problems.append(Problem(samples.name, f"image {image.image_id} ({image.file_name})", str(error)))
    return problems
