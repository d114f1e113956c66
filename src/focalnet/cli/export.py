"""``focalnet export``: writes a model to one file for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from focalnet.cli.terminal import say
from focalnet.errors import ConfigError


def export(
    model: Annotated[str, typer.Argument(help="A name in 'focalnet models', or a weights file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write: .onnx or .pt2.")],
    format: Annotated[
        Literal["onnx", "torch"] | None,
        typer.Option(help="onnx, or torch for a program of torch.export; default: as the suffix of --out says."),
    ] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX operator set, 18 to 20; default: 18.")] = None,
    grid_sample: Annotated[
        bool,
        typer.Option(
            "--grid-sample/--no-grid-sample",
            help="Whether the file may contain GridSample, which some runtimes compute wrongly.",
        ),
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Writes a model to one file for images of any number and size.

    The file contains postprocessing, class names and preprocessing. It is first compared with the model; a file that
    disagrees is not written.
    """
    if out.exists() and not force:
        raise ConfigError(f"{out}: already exists; overwrite it with --force")
    from focalnet import zoo
    from focalnet.exporting import export as write

    exported = write(zoo.load(model), out, format, opset=opset, grid_sample=grid_sample)
    say(f"wrote {exported.path} ({exported.path.stat().st_size / 1e6:.1f} MB)")
    for name, difference in exported.differences.items():
        say(f"  largest difference from PyTorch: {name} {difference:.2g}")
