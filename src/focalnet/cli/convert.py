"""``focalnet convert``: converts a checkpoint to our format, or to another library's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from focalnet.cli.terminal import say
from focalnet.errors import CheckpointError

LayoutName = Literal["native", "microsoft", "timm", "huggingface", "openmmlab", "focalnet_dino", "detrex"]


def convert(
    source: Annotated[
        Path, typer.Argument(help="A checkpoint in any known layout: .pth, .bin, .safetensors or a folder.")
    ],
    target: Annotated[Path, typer.Argument(help="The file to write: .safetensors, or another suffix for a pickle.")],
    to: Annotated[LayoutName, typer.Option(help="The layout to write.")] = "native",
    architecture: Annotated[
        str | None,
        typer.Option(help="Published name of the architecture, if its tensor shapes are ambiguous."),
    ] = None,
    post_norm: Annotated[
        bool | None,
        typer.Option("--post-norm/--pre-norm", help="Where the norms of blocks are, for unpublished architectures."),
    ] = None,
    normalize_modulator: Annotated[
        bool | None,
        typer.Option(help="Whether the context is divided by levels + 1; published sources disagree for fl4 models."),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], typer.Option(help="Storage type; a 16-bit type halves the file.")
    ] = "float32",
    force: Annotated[bool, typer.Option("--force", help="Overwrite the target.")] = False,
) -> None:
    """Converts a checkpoint to another layout.

    Prints which tensors were converted, and which settings the new file does not store.
    """
    import torch

    from focalnet import weights

    extra_files = [target.with_name("config.json")] if to == "huggingface" else []
    for path in [target, *extra_files]:
        if path.exists() and not force:
            raise CheckpointError(f"{path}: already exists; overwrite it with --force")
    chosen = {"post_norm": post_norm, "normalize_modulator": normalize_modulator}
    settings = {name: value for name, value in chosen.items() if value is not None}
    checkpoint = weights.read(source, architecture=architecture, **settings)
    written = weights.export(checkpoint, target, to, getattr(torch, dtype))
    section = f', its section "{checkpoint.section}"' if checkpoint.section else ""
    shape = checkpoint.architecture or "an unpublished architecture"
    say(f"{checkpoint.path}: layout {checkpoint.layout}, {shape}{section}")
    say(*str(checkpoint.report()).split("\n"))
    if bad := checkpoint.not_finite():
        say(
            f"{len(bad)} of its tensors hold NaN or infinite values, e.g. {bad[0]}: its results are meaningless",
            err=True,
        )
    for name, known in checkpoint.unsettled.items():
        option = name.replace("_", "-")
        value = getattr(checkpoint.backbone, name)
        say(f"{name}={value} is not settled: {known}. Choose with --{option} or --no-{option}", err=True)
    say(f"wrote {written} ({to})")
    if not_stored := weights.untold(checkpoint, written):
        say(
            "the file does not store these settings: pass them when loading it, or use the native layout",
            err=True,
        )
        for name, value in not_stored.items():
            say(f"  {name}={_short(value)}", err=True)


def _short(value: object) -> str:
    """A value as text, cut to 70 characters."""
    text = str(value)
    return text if len(text) <= 70 else f"{text[:66]} ..."
