"""A picture with what was recognised in it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from focalnet.errors import ConfigError
from focalnet.structures import Classification
from focalnet.visualize import palettes
from focalnet.visualize.canvas import SMALLEST, printable, readable_size


def draw_classification(result: Classification) -> Image.Image:
    """Draws the picture with its best classes below: name, score in percent, and a bar.

    Raises:
        ConfigError: the result carries no picture.
    """
    if result.image is None:
        raise ConfigError(f"nothing to draw on: the classification of {result.path or 'this picture'} has no image")
    picture = readable_size(result.image)
    width = max(picture.width, SMALLEST)
    text_size = min(max(width // 26, 14), 30)
    row, margin = int(text_size * 2.1), text_size
    sheet = Image.new("RGB", (width, picture.height + 2 * margin + row * len(result.labels)), palettes.PAPER)
    sheet.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    for rank, (name, score) in enumerate(zip(result.names, result.scores, strict=True)):
        top = picture.height + margin + rank * row
        _draw_row(draw, (margin, top, width - margin), name, score, text_size, best=rank == 0)
    return sheet


def _draw_row(
    draw: ImageDraw.ImageDraw, place: tuple[int, int, int], name: str, score: float, text_size: int, *, best: bool
) -> None:
    left, top, right = place
    font = _font(text_size, bold=best)
    percent = f"{score:.1%}"
    room = right - left - font.getlength(percent) - text_size
    draw.text((left, top), _shortened(printable(name), font, room), palettes.INK, font)
    draw.text((right, top), percent, palettes.INK, font, anchor="ra")
    bar_top = top + int(text_size * 1.35)
    bar = (left, bar_top, right, bar_top + max(text_size // 4, 3))
    draw.rectangle(bar, palettes.TRACK)
    if score * (right - left) >= 1:
        draw.rectangle((*bar[:2], left + score * (right - left), bar[3]), palettes.BAR if best else palettes.BAR_REST)


def _shortened(text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text + "…"


@lru_cache
def _font(size: int, *, bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: it knows more alphabets than Pillow's own font."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)
