"""A picture with what was recognised in it."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from focalnet.errors import ConfigError
from focalnet.results import Classification
from focalnet.visualize import palettes
from focalnet.visualize.canvas import SMALLEST, font, printable, readable_size


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
    letters = font(text_size, bold=best)
    percent = f"{score:.1%}"
    room = right - left - letters.getlength(percent) - text_size
    draw.text((left, top), _shortened(printable(name), letters, room), palettes.INK, letters)
    draw.text((right, top), percent, palettes.INK, letters, anchor="ra")
    bar_top = top + int(text_size * 1.35)
    bar = (left, bar_top, right, bar_top + max(text_size // 4, 3))
    draw.rectangle(bar, palettes.TRACK)
    if score * (right - left) >= 1:
        draw.rectangle((*bar[:2], left + score * (right - left), bar[3]), palettes.BAR if best else palettes.BAR_REST)


def _shortened(text: str, letters: ImageFont.FreeTypeFont, room: float) -> str:
    if letters.getlength(text) <= room:
        return text
    while text and letters.getlength(text + "…") > room:
        text = text[:-1]
    return text + "…"
