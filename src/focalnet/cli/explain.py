"""``focalnet explain``: what does the network attend to?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from focalnet.cli import DEFAULT_MODEL
from focalnet.cli.terminal import say


def explain(
    paths: Annotated[list[str], typer.Argument(metavar="FILES|FOLDERS|GLOBS...", help="Images.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A name of 'focalnet models', or a weights file.")] = (
        DEFAULT_MODEL
    ),
    out: Annotated[Path, typer.Option(help="Where to: a folder for each image is made in it.")] = Path("out"),
    block: Annotated[
        list[str] | None,
        typer.Option(help="A block, e.g. layers.2.blocks.1; may be repeated; default: the last of each stage."),
    ] = None,
    kernels: Annotated[bool, typer.Option("--kernels", help="Also draw the depthwise kernels of the blocks.")] = False,
) -> None:
    """Draws what the network attends to.

    For each image: the gate of each focal level, the global gate and the norm of the modulator, laid over it.
    """
    from focalnet.data.images import find

    files = find(paths)  # before torch: a mistyped path is told at once

    from focalnet import explanations, zoo
    from focalnet.visualize import draw_kernels, save_image, unique_names

    loaded = zoo.load(model)
    network = loaded.backbone
    for file, name in zip(files, unique_names(files), strict=True):
        sheet, *overlays = explanations.explain(network, file, block).save(out / name)
        say(file, f"  {sheet} and {len(overlays)} overlays beside it")
    if kernels:
        drawing = draw_kernels(explanations.kernels(network, block), title=model)
        say("kernels", f"  {save_image(drawing, out / 'kernels.png')}")
