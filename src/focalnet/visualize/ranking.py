"""Draws an image with the best classes and their scores."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from focalnet.visualize import palettes
from focalnet.visualize.canvas import SMALLEST, font, label_size, original_size, printable, readable_size, write_text


def draw_ranking(
    image: Image.Image, names: Sequence[str], scores: Sequence[float], *, as_frame: bool = False
) -> Image.Image:
    """Draws the image with its best classes below: name, score in percent, and a bar.

    Args:
        image: not modified.
        names: class names, best first.
        scores: class scores, 0 to 1.
        as_frame: keep the image size, and write only the best class in a corner.
    """
    if as_frame:
        frame = original_size(image)
        for name, score in zip(names[:1], scores[:1], strict=True):
            text = f"{printable(name)} {score:.0%}"
            write_text(frame, (0, 0, *label_size(frame, text)), text, palettes.rgb(palettes.BAR))
        return frame
    drawn = readable_size(image)
    width = max(drawn.width, SMALLEST)
    text_size = min(max(width // 26, 14), 30)
    row, margin = int(text_size * 2.1), text_size
    sheet = Image.new("RGB", (width, drawn.height + 2 * margin + row * len(names)), palettes.PAPER)
    sheet.paste(drawn, ((width - drawn.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    for rank, (name, score) in enumerate(zip(names, scores, strict=True)):
        top = drawn.height + margin + rank * row
        _draw_row(draw, (margin, top, width - margin), name, score, text_size, best=rank == 0)
    return sheet


def _draw_row(
    draw: ImageDraw.ImageDraw, position: tuple[int, int, int], name: str, score: float, text_size: int, *, best: bool
) -> None:
    left, top, right = position
    letters = font(text_size, bold=best)
    percent = f"{score:.1%}"
    max_width = right - left - letters.getlength(percent) - text_size
    draw.text((left, top), _shortened(printable(name), letters, max_width), palettes.INK, letters)
    draw.text((right, top), percent, palettes.INK, letters, anchor="ra")
    bar_top = top + int(text_size * 1.35)
    bar = (left, bar_top, right, bar_top + max(text_size // 4, 3))
    draw.rectangle(bar, palettes.TRACK)
    if score * (right - left) >= 1:
        draw.rectangle((*bar[:2], left + score * (right - left), bar[3]), palettes.BAR if best else palettes.BAR_REST)


def _shortened(text: str, letters: ImageFont.FreeTypeFont, max_width: float) -> str:
    if letters.getlength(text) <= max_width:
        return text
    while text and letters.getlength(text + "…") > max_width:
        text = text[:-1]
    return text + "…"
