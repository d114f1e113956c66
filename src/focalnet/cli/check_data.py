"""``focalnet check-data``: is a detection data set fit to train on?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from focalnet.errors import DataError

if TYPE_CHECKING:
    from focalnet.data.check import CheckedPart


def check_data(
    root: Annotated[Path, typer.Argument(help="The folder of a COCO-format data set, or one annotation file of it.")],
    images: Annotated[
        str | None, typer.Option(help="The folder or tar file of the pictures, relative to ROOT; default: looked for.")
    ] = None,
    masks: Annotated[bool, typer.Option("--masks", help="Every object must have a segmentation.")] = False,
    decode: Annotated[bool, typer.Option("--decode", help="Also decode every picture and compare its size.")] = False,
) -> None:
    """Names everything that is wrong with a detection data set, a line each: file, image, annotation.

    Exit code 2 if there is anything: broken JSON, missing pictures, ids given twice, unknown categories, boxes
    without size or outside their picture, broken segmentations. Training makes the same check before it starts.
    """
    from focalnet.data.check import check_part, check_pictures

    found = 0
    folder = root if root.is_dir() else _above(root)
    for file in _annotation_files(root):
        part = check_part(folder, file, masks=masks, images=images)
        problems = [*part.problems, *(check_pictures(part) if decode else [])]
        for problem in problems:
            typer.echo(problem)
        found += len(problems)
        typer.echo(f"{file}: {_summary(part)}", err=True)
    if found:
        raise DataError(f"{root}: {found} {'problem' if found == 1 else 'problems'}, listed above")


def _above(file: Path) -> Path:
    """The folder of the data set that an annotation file is of."""
    return file.parent.parent if file.parent.name == "annotations" else file.parent


def _annotation_files(root: Path) -> list[Path]:
    from focalnet.data.check import find_annotations

    if root.is_file():
        return [root]
    parts = (find_annotations(root, "train"), find_annotations(root, "val"), find_annotations(root, "test"))
    files = [file for file in parts if file is not None]
    if not files:
        raise DataError(f"{root}: no annotation files there, e.g. annotations/instances_train.json; name one itself")
    return files


def _summary(part: CheckedPart) -> str:
    objects = ", ".join(f"{count} {name}" for name, count in part.objects().items())
    return f"{len(part.coco.images)} images; {objects}"
