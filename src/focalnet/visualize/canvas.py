"""What drawings share: a size that can be looked at, text that can be drawn, a page without a window."""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from PIL import Image, ImageFont

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALLEST, LARGEST = 320, 1024  # pixels of the long side: room for text, and no larger than a screen needs


def readable_size(image: Image.Image, smallest: int = SMALLEST, largest: int = LARGEST) -> Image.Image:
    """Returns the picture in RGB with its long side between ``smallest`` and ``largest`` pixels, same proportions."""
    long_side = max(image.size)
    scale = min(max(long_side, smallest), largest) / long_side
    width, height = (max(round(side * scale), 1) for side in image.size)
    return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def original_size(image: Image.Image) -> Image.Image:
    """Returns a copy in RGB: what is drawn on the frames of a video must not change their size."""
    return image.convert("RGB")


def printable(text: str) -> str:
    """Returns one line that can be drawn: line breaks and control characters become spaces."""
    return "".join(character if character.isprintable() else " " for character in text)


@lru_cache
def font(size: int, *, bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: it knows more alphabets than Pillow's own font."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)


def render(figure: Figure) -> Image.Image:
    """Draws a matplotlib figure into a picture, without pyplot and its global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # A file or class may be named in an alphabet that the font lacks: boxes are drawn, and no harm done.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas.draw()  # type: ignore[no-untyped-call]  # matplotlib's
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")  # type: ignore[no-untyped-call]
