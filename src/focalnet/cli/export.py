"""``focalnet export``: writes a model to one file for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from focalnet.cli.terminal import say
from focalnet.cli.train import show_progress
from focalnet.errors import ConfigError


def export(
    model: Annotated[str, typer.Argument(help="A name in 'focalnet models', or a weights file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write: .onnx, .xml or .pt2.")],
    format: Annotated[
        Literal["onnx", "openvino", "torch"] | None,
        typer.Option(
            help="onnx, openvino, or torch for a program of torch.export; default: as the suffix of --out says."
        ),
    ] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX operator set, 18 to 20; default: 18.")] = None,
    grid_sample: Annotated[
        bool,
        typer.Option(
            "--grid-sample/--no-grid-sample",
            help="Whether the file may contain GridSample, which some runtimes compute wrongly.",
        ),
    ] = True,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="Compute in 8-bit integers, except in layers that cost too much accuracy; needs --data."
        ),
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            help="With --int8: a labeled data set as for training, or the config.yaml of a run, to calibrate and to "
            "measure with."
        ),
    ] = None,
    split: Annotated[
        Literal["val", "test"], typer.Option(help="With --int8: the images to measure with; training images calibrate.")
    ] = "val",
    calibration: Annotated[
        int | None, typer.Option(help="With --int8: images to calibrate with; default: 300, or all if there are fewer.")
    ] = None,
    max_loss: Annotated[
        float | None,
        typer.Option(help="With --int8: percentage points that may be lost; default: 0.3 of top-1, 0.5 of others."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Writes a model to one file for images of any number and size.

    The file contains postprocessing, class names and preprocessing. It is first compared with the model; a file that
    disagrees is not written. With --int8, the loss of accuracy is measured first; FILE.int8.json says what each layer
    costs.
    """
    from focalnet import zoo
    from focalnet.exporting import export as write
    from focalnet.exporting.exporting import report_path

    for file in (out, report_path(out)) if int8 else (out,):
        if file.exists() and not force:
            raise ConfigError(f"{file}: already exists; overwrite it with --force")
    if int8:
        show_progress()
    exported = write(
        zoo.load(model),
        out,
        format,
        opset=opset,
        grid_sample=grid_sample,
        int8=int8,
        data=data,
        split=split,
        calibration=calibration,
        max_loss=max_loss,
    )
    say(f"wrote {exported.path} ({exported.bytes / 1e6:.1f} MB)")
    for name, difference in exported.differences.items():
        of = "in float32, " * int8
        say(f"  largest difference from PyTorch: {of}{name} {difference:.2g}")
    if exported.quantization is not None:
        say(*(f"  {line}" for line in exported.quantization.lines()), f"  all layers: {exported.report}")
