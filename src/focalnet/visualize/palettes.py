"""Colours, in one place."""

from __future__ import annotations

from typing import Final

INK: Final = "#1b1f24"  # text
FAINT: Final = "#6a737d"  # secondary text
PAPER: Final = "#ffffff"  # background
TRACK: Final = "#e6e9ed"  # the empty part of a bar
BAR: Final = "#2f6fde"  # the best class
BAR_REST: Final = "#a9c3f2"  # the others

HEAT: Final = "Spectral_r"  # matplotlib's name of the colour map for gates and modulators
KERNEL: Final = "viridis"  # and for kernels
