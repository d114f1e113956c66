"""``focalnet convert-data``: converts annotations of other tools to the COCO format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from focalnet.cli.terminal import say
from focalnet.errors import DataError


def convert_data(
    source: Annotated[
        Path,
        typer.Argument(help="A folder or file of YOLO, Pascal VOC, CVAT, Label Studio, labelme, VIA or Open Images."),
    ],
    target: Annotated[
        Path,
        typer.Argument(help="The file to write; training reads SOURCE/annotations/instances_{train,val}.json."),
    ],
    split: Annotated[
        str | None, typer.Option(help="Only this split, e.g. train, or ImageSets/Main/SPLIT.txt of VOC; default: all.")
    ] = None,
    class_names: Annotated[
        Path | None,
        typer.Option(help="A file that lists the classes in label order; default: as listed there, else sorted."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the target.")] = False,
) -> None:
    """Converts other tools' annotations of objects to COCO's JSON.

    Training reads them as they are, too. Images stay where they are. What a tool marks difficult, or as a group,
    becomes a crowd region, which evaluation ignores.
    """
    from focalnet.data.formats.sets import find_set
    from focalnet.data.readers.classes import read_class_names

    if target.exists() and not force:
        raise DataError(f"{target}: already exists; overwrite it with --force")
    classes = None if class_names is None else read_class_names(class_names)[0]
    found = find_set(source)
    if found is None:
        raise DataError(
            f"{source}: no annotations there that are known: neither data.yaml nor text files (YOLO), no XML files "
            "(Pascal VOC, CVAT), JSON files (Label Studio, labelme, VGG Image Annotator) or CSV files (Open Images)"
        )
    written = found.convert(target, split=split, classes=classes)
    for remark in dict.fromkeys(found.remarks):
        say(f"warning: {remark}", err=True)
    say(f"wrote {written}")
