"""``focalnet convert``: any known checkpoint to our format, or to another library's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from focalnet.cli.terminal import say
from focalnet.errors import CheckpointError

LayoutName = Literal["native", "microsoft", "timm", "huggingface", "openmmlab"]


def convert(
    source: Annotated[
        Path, typer.Argument(help="A checkpoint of any known layout: .pth, .bin, .safetensors, a folder.")
    ],
    target: Annotated[Path, typer.Argument(help="The file to write; .safetensors, or another suffix for a pickle.")],
    to: Annotated[LayoutName, typer.Option(help="The layout to write.")] = "native",
    architecture: Annotated[
        str | None,
        typer.Option(help="Its published name, where the shapes alone do not tell."),
    ] = None,
    post_norm: Annotated[
        bool | None,
        typer.Option("--post-norm/--pre-norm", help="Where its norms are, for shapes that were never published."),
    ] = None,
    normalize_modulator: Annotated[
        bool | None,
        typer.Option(help="Whether it divides the context by levels + 1; unsettled for the fl4 models."),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], typer.Option(help="How to store numbers; half takes half the space.")
    ] = "float32",
    force: Annotated[bool, typer.Option("--force", help="Overwrite the target.")] = False,
) -> None:
    """Converts a checkpoint; prints what became of its tensors, and which settings the new file does not tell."""
    import torch

    from focalnet import weights

    beside = [target.with_name("config.json")] if to == "huggingface" else []
    for path in [target, *beside]:
        if path.exists() and not force:
            raise CheckpointError(f"{path}: exists already; overwrite it with --force")
    chosen = {"post_norm": post_norm, "normalize_modulator": normalize_modulator}
    settings = {name: value for name, value in chosen.items() if value is not None}
    checkpoint = weights.read(source, architecture=architecture, **settings)
    written = weights.export(checkpoint, target, to, getattr(torch, dtype))
    section = f', its section "{checkpoint.section}"' if checkpoint.section else ""
    shape = checkpoint.architecture or "a shape of its own"
    say(f"{checkpoint.path}: layout {checkpoint.layout}, {shape}{section}")
    say(*str(checkpoint.report()).split("\n"))
    for name, known in checkpoint.unsettled.items():
        option = name.replace("_", "-")
        value = getattr(checkpoint.backbone, name)
        say(f"{name}={value} is not settled: {known}. Choose with --{option} or --no-{option}", err=True)
    say(f"wrote {written} ({to})")
    if left := weights.untold(checkpoint, written):
        say(
            "it does not tell these settings: give them to whatever reads it, or stay with our own format, which does",
            err=True,
        )
        for name, value in left.items():
            say(f"  {name}={_short(value)}", err=True)


def _short(value: object) -> str:
    """A value in a line: of a long one, what it begins with."""
    text = str(value)
    return text if len(text) <= 70 else f"{text[:66]} ..."
