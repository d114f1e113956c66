"""``focalnet convert-data``: converts Pascal VOC annotations to the COCO format, which training reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from focalnet.errors import DataError


def convert_data(
    source: Annotated[Path, typer.Argument(help="A Pascal VOC folder that contains Annotations and JPEGImages.")],
    target: Annotated[
        Path,
        typer.Argument(help="The file to write; training reads SOURCE/annotations/instances_{train,val}.json."),
    ],
    split: Annotated[
        str | None, typer.Option(help="Only the images listed in ImageSets/Main/SPLIT.txt; default: all.")
    ] = None,
    class_names: Annotated[
        Path | None,
        typer.Option(help="A file that lists the classes in label order; default: all annotated names, sorted."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the target.")] = False,
) -> None:
    """Converts Pascal VOC's XML annotations to COCO's JSON.

    Images stay where they are. Objects marked difficult become crowd regions, which evaluation ignores.
    """
    from focalnet.data.formats.voc import convert_voc
    from focalnet.data.readers.classes import read_class_names

    if target.exists() and not force:
        raise DataError(f"{target}: already exists; overwrite it with --force")
    classes = None if class_names is None else read_class_names(class_names)[0]
    typer.echo(f"wrote {convert_voc(source, target, split=split, classes=classes)}")
