"""``focalnet convert-data``: Pascal VOC's annotations in COCO's form, which training reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from focalnet.cli.terminal import say
from focalnet.errors import DataError


def convert_data(
    source: Annotated[Path, typer.Argument(help="A Pascal VOC folder, with Annotations and JPEGImages in it.")],
    target: Annotated[
        Path,
        typer.Argument(help="The file to write; training looks for SOURCE/annotations/instances_train.json and _val."),
    ],
    split: Annotated[
        str | None, typer.Option(help="Only the images listed in ImageSets/Main/SPLIT.txt; default: all.")
    ] = None,
    class_names: Annotated[
        Path | None,
        typer.Option(help="A file that lists the classes in label order; default: those found, sorted."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the target.")] = False,
) -> None:
    """Converts Pascal VOC's XML annotations to COCO's JSON.

    Pictures stay where they are. Objects marked difficult become crowd regions: neither to be found nor a mistake.
    """
    from focalnet.data.formats.voc import convert_voc
    from focalnet.data.readers.classes import read_class_names

    if target.exists() and not force:
        raise DataError(f"{target}: exists already; overwrite it with --force")
    classes = None if class_names is None else read_class_names(class_names)[0]
    say(f"wrote {convert_voc(source, target, split=split, classes=classes)}")
