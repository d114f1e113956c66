"""Colours, in one place."""

from __future__ import annotations

from typing import Final

INK: Final = "#1b1f24"  # text
FAINT: Final = "#6a737d"  # secondary text
PAPER: Final = "#ffffff"  # background
TRACK: Final = "#e6e9ed"  # the empty part of a bar
BAR: Final = "#2f6fde"  # the best class
BAR_REST: Final = "#a9c3f2"  # the others

#: Of classes, in order, then again from the start. White text can be read on each.
CLASSES: Final = (
    "#2f6fde", "#d1495b", "#2e8b57", "#b8651b", "#7b4fc9", "#0e7c86", "#b03a91", "#5f6b13", "#8a4b3c", "#3a4a8c",
)  # fmt: skip

HEAT: Final = "Spectral_r"  # matplotlib's name of the colour map for gates and modulators
KERNEL: Final = "viridis"  # and for kernels


def of_class(label: int) -> str:
    """The colour of a class."""
    return CLASSES[label % len(CLASSES)]


def rgb(colour: str) -> tuple[int, int, int]:
    """``"#ff8000"`` as (255, 128, 0)."""
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue
