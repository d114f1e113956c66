"""``focalnet explain``: draws what the network attends to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from focalnet.cli import DEFAULT_MODEL
from focalnet.cli.terminal import say


def explain(
    paths: Annotated[list[str], typer.Argument(metavar="FILES|FOLDERS|GLOBS...", help="Images.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A name in 'focalnet models', or a weights file.")] = (
        DEFAULT_MODEL
    ),
    out: Annotated[Path, typer.Option(help="Output folder; each image gets a folder in it.")] = Path("out"),
    block: Annotated[
        list[str] | None,
        typer.Option(help="Block to show, e.g. layers.2.blocks.1; repeatable; default: the last block of each stage."),
    ] = None,
    kernels: Annotated[bool, typer.Option("--kernels", help="Also draw the depthwise kernels of the blocks.")] = False,
) -> None:
    """Draws what the network attends to.

    Overlays the gate of each focal level, the global gate and the norm of the modulator on each image.
    """
    from focalnet.data.images import find

    files = find(paths)  # before importing torch, so that a mistyped path fails at once

    from focalnet import explanations, zoo
    from focalnet.visualize import draw_kernels, save_image, unique_names

    loaded = zoo.load(model)
    network = loaded.backbone
    for file, name in zip(files, unique_names(files), strict=True):
        sheet, *overlays = explanations.explain(network, file, block).save(out / name)
        say(file, f"  {sheet} and {len(overlays)} overlays in the same folder")
    if kernels:
        drawing = draw_kernels(explanations.kernels(network, block), title=model)
        say("kernels", f"  {save_image(drawing, out / 'kernels.png')}")
