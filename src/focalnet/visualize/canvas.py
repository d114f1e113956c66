"""Shared helpers of drawings: readable sizes, text, legends, and rendering of figures without a window."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from focalnet.visualize import palettes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALLEST, LARGEST = 320, 1024  # pixels of the long side: room for text, at most the size of a screen
LONGEST_TEXT = 200  # characters of a name


def readable_size(image: Image.Image, smallest: int = SMALLEST, largest: int = LARGEST) -> Image.Image:
    """Returns the image in RGB with its long side between ``smallest`` and ``largest`` pixels, same proportions."""
    long_side = max(image.size)
    scale = min(max(long_side, smallest), largest) / long_side
    width, height = (max(round(side * scale), 1) for side in image.size)
    return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def original_size(image: Image.Image) -> Image.Image:
    """Returns an RGB copy of the same size, for frames of a video."""
    return image.convert("RGB")


def printable(text: str, most: int = LONGEST_TEXT) -> str:
    """Returns one line to draw: control characters become spaces, and text of over ``most`` characters is cut."""
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return "".join(character if character.isprintable() else " " for character in text)


@lru_cache
def font(size: int, *, bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has more alphabets than Pillow's own font."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)


def label_font(size: tuple[int, int]) -> ImageFont.FreeTypeFont:
    """The font of labels on an image of this width and height."""
    return font(min(max(max(size) // 60, 11), 24), bold=False)


def label_size(image: Image.Image, text: str) -> tuple[int, int]:
    """Width and height in pixels of a label on an image."""
    left, top, right, bottom = ImageDraw.Draw(image).textbbox((0, 0), text, label_font(image.size))
    return int(right - left) + 6, int(bottom - top) + 6


def write_text(image: Image.Image, place: Sequence[float], text: str, color: palettes.RGB) -> None:
    """Writes text on a background of this color, white or dark, whichever can be read.

    Args:
        image: modified in place.
        place: left, top, right, bottom.
        text: one line.
        color: of the background.
    """
    draw, letters = ImageDraw.Draw(image), label_font(image.size)
    left, top, _, _ = draw.textbbox((0, 0), text, letters)
    draw.rectangle(tuple(place), fill=color)
    draw.text((place[0] + 3 - left, place[1] + 3 - top), text, palettes.ink_on(color), letters)


def with_legend(image: Image.Image, entries: Sequence[tuple[palettes.RGB, str]]) -> Image.Image:
    """The image with a legend below, in as many columns as fit."""
    width = max(image.width, SMALLEST)
    text_size = min(max(width // 55, 12), 24)
    letters, line, gap = font(text_size, bold=False), int(1.6 * text_size), text_size
    max_width = width - 2 * gap - 2 * text_size
    texts = [_shortened(printable(text), letters, max_width) for _, text in entries]
    column = int(max((letters.getlength(text) for text in texts), default=0)) + 2 * text_size + gap
    columns = max((width - gap) // column, 1)
    rows = -(-len(entries) // columns)
    page = Image.new("RGB", (width, image.height + (rows * line + 2 * gap if rows else 0)), palettes.PAPER)
    page.paste(image, ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(page)
    for i, ((color, _), text) in enumerate(zip(entries, texts, strict=True)):
        left, top = gap + i // rows * column, image.height + gap + i % rows * line
        draw.rectangle((left, top, left + text_size, top + text_size), fill=color)
        draw.text((left + int(1.5 * text_size), top + text_size / 2), text, palettes.INK, letters, anchor="lm")
    return page


def render(figure: Figure) -> Image.Image:
    """Draws a matplotlib figure into an image, without pyplot and its global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # A name may have characters that the font lacks; boxes are drawn in their place.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas.draw()  # type: ignore[no-untyped-call]  # matplotlib's
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")  # type: ignore[no-untyped-call]


def _shortened(text: str, letters: ImageFont.FreeTypeFont, max_width: float) -> str:
    while len(text) > 1 and letters.getlength(text) > max_width:
        text = text[:-2] + "…"
    return text
