"""What is wrong with the tables of labels of a data set, all of it at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from focalnet.data.formats.problems import Problem
from focalnet.data.modules.base import SAYS_HELD_OUT
from focalnet.data.modules.multilabel import MultiLabelData
from focalnet.data.readers.collection import check_exists
from focalnet.data.readers.image_files import ImageFiles
from focalnet.errors import DataError


@dataclass(frozen=True)
class CheckedTable:
    """A table of labels with all that is wrong with it.

    Args:
        path: of the table.
        problems: what stops training.
        remarks: what does not.
        labels: names of the classes of each usable image, by the path that messages give the image.
        names: the files of these images, as ``images`` has them.
        images: where they are; None if they were not found.
        class_names: as training shows them, in label order; empty if they could not be read.
    """

    path: Path
    problems: list[Problem]
    remarks: list[str]
    labels: dict[str, frozenset[str]]
    names: list[str]
    images: ImageFiles | None
    class_names: tuple[str, ...]


def check_tables(data: MultiLabelData) -> Iterator[CheckedTable]:
    """Reads the tables of all splits and finds the files of their images, and lists what is wrong with them.

    Args:
        data: which tables there are, and how they are read.

    Raises:
        DataError: there is no table for training.
    """
    check_exists(data.root)
    training_file = data.training_file()
    earlier: dict[str, tuple[Path, frozenset[str]]] = {}
    for file in dict.fromkeys(data.found().values()):
        checked = _check(data, file)
        if checked.images is not None:
            checked.remarks.extend(_remarks(checked, earlier))
            if file == training_file:
                checked.remarks.extend(_training_remarks(checked, has_val="val" in data.found()))
        earlier = {image: (file, labels) for image, labels in checked.labels.items()} | earlier
        yield checked
        if not checked.class_names:
            return  # the other tables are read like that for training


def _check(data: MultiLabelData, file: Path) -> CheckedTable:
    problems: list[Problem] = []
    unusable = CheckedTable(file, problems, [], {}, [], None, ())

    def add(line: int | None, what: str) -> None:
        problems.append(Problem(str(file), "" if line is None else f"line {line}", what))

    try:
        table = data.table(file, add)
        classes = data.classes(file)
    except DataError as error:
        add(None, str(error).removeprefix(f"{file}: "))
        return unusable
    for line, what in data.unknown_classes(table, classes):
        add(line, what)
    try:
        images, files = data.find_files(table, add)
    except DataError as error:
        add(None, str(error).removeprefix(f"{file}: "))
        return replace(unusable, class_names=tuple(classes.values()))
    rows = [(name, labels) for name, labels in zip(files, table.labels, strict=True) if name is not None]
    if file == data.table_file("train") and not any(labels for _, labels in rows):
        add(None, "no image has any class, so there is nothing to learn")
    labels = {
        os.path.normpath(images.path(name)): frozenset(classes.get(one, one) for one in labels) for name, labels in rows
    }
    return CheckedTable(file, problems, [], labels, [name for name, _ in rows], images, tuple(classes.values()))


def _remarks(checked: CheckedTable, earlier: Mapping[str, tuple[Path, frozenset[str]]]) -> Iterator[str]:
    """What is odd about a table, but does not stop training.

    Args:
        checked: the table.
        earlier: the images of the tables before it, with their labels.
    """
    used = frozenset[str]().union(*checked.labels.values())
    if used and (absent := [name for name in checked.class_names if name not in used]):
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        yield f"no image has the class {', '.join(absent[:5])}{more}"
    shared = {image: earlier[image] for image in checked.labels if image in earlier}
    if shared:
        example, (other, _) = next(iter(shared.items()))
        differ = sum(checked.labels[image] != labels for image, (_, labels) in shared.items())
        labels_differ = f", {differ} of them with different labels" if differ else ""
        yield (
            f"images that are also in the table of another split: {len(shared)} of {len(checked.labels)}"
            f"{labels_differ} ({example} is in {other.name}); metrics will be too good"
        )


def _training_remarks(checked: CheckedTable, *, has_val: bool) -> Iterator[str]:
    if checked.labels and all(len(labels) == 1 for labels in checked.labels.values()):
        yield (
            "every image has exactly one class; a network trained on a table scores each class by itself, one trained "
            "on class folders (classification/finetune) chooses one class"
        )
    if not has_val:
        yield SAYS_HELD_OUT
