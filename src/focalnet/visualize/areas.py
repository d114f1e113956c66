"""What pictures of areas share: colours laid over them, names in their midst, and a legend below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont

from focalnet.visualize import palettes
from focalnet.visualize.canvas import SMALLEST, font, printable

Colour: TypeAlias = "tuple[int, int, int]"
Mask: TypeAlias = "npt.NDArray[np.bool_]"

SHARE = 0.55  # of the colour within an area
COARSE = 200  # pixels of the long side, in which the middle of an area is looked for
FLAT = 3.0  # names are wider than tall: so many times as far from an area's left and right as from above and below


class Area(NamedTuple):
    """One area of a map.

    Args:
        number: its value in the map.
        text: what is written on it.
        colour: of it.
    """

    number: int
    text: str
    colour: Colour


def sampled(numbers: torch.Tensor, size: tuple[int, int]) -> npt.NDArray[np.int64]:
    """A map ``(H, W)`` at another width and height, by nearest neighbour and without a copy of its own size."""
    width, height = size
    rows = ((torch.arange(height) + 0.5) * numbers.shape[0] / height).long()
    columns = ((torch.arange(width) + 0.5) * numbers.shape[1] / width).long()
    found: npt.NDArray[np.int64] = numbers.cpu()[rows[:, None], columns].long().numpy()
    return found


def lay_over(picture: Image.Image, numbers: npt.NDArray[np.int64], areas: Sequence[Area]) -> Image.Image:
    """Tints each area and draws a thin white line between them; what belongs to none is dimmed."""
    place = {area.number: i for i, area in enumerate(areas)}
    found, index = np.unique(numbers, return_inverse=True)
    colours = np.array([*(area.colour for area in areas), palettes.rgb(palettes.NOTHING)], dtype=np.float32)
    owner = np.array([place.get(int(number), len(areas)) for number in found])[index.reshape(numbers.shape)]
    tinted = (1 - SHARE) * np.asarray(picture, dtype=np.float32) + SHARE * colours[owner]
    line = np.zeros(owner.shape, dtype=bool)
    line[:, 1:] |= owner[:, 1:] != owner[:, :-1]
    line[1:] |= owner[1:] != owner[:-1]
    tinted[line] = 0.3 * tinted[line] + 0.7 * 255
    return Image.fromarray(tinted.astype(np.uint8))


def write_names(picture: Image.Image, numbers: npt.NDArray[np.int64], areas: Sequence[Area]) -> None:
    """Writes each name where its area is widest, the first ones first; where there is no room, it is left out."""
    draw = ImageDraw.Draw(picture)
    letters = font(min(max(max(picture.size) // 60, 11), 24), bold=False)
    scale = max(max(picture.size) / COARSE, 1.0)
    width, height = (max(round(side / scale), 1) for side in picture.size)
    coarse = sampled(torch.from_numpy(numbers), (width, height))
    taken: list[tuple[float, float, float, float]] = []
    for area in areas:
        mask = coarse == area.number
        if not mask.any():  # smaller than a coarse pixel
            continue
        x, y = ((middle + 0.5) * side for middle, side in zip(deepest(mask), _pixel(picture, mask), strict=True))
        text = printable(area.text)
        left, top, right, bottom = draw.textbbox((0, 0), text, letters)
        size = (right - left + 6, bottom - top + 6)
        box = _free_place((x, y), size, picture.size, taken)
        if box is None:
            continue
        taken.append(box)
        draw.rectangle(box, fill=area.colour)
        draw.text((box[0] + 3 - left, box[1] + 3 - top), text, palettes.ink_on(area.colour), letters)


def deepest(mask: Mask) -> tuple[int, int]:
    """Column and row of the pixel that is farthest from everything outside the mask, the picture's edge included."""
    far = np.where(np.pad(mask, 1), np.inf, 0.0)
    for axis, step in ((0, 1.0), (1, 1 / FLAT)):
        way = np.arange(far.shape[axis]) * step
        way = way[:, None] if axis == 0 else way
        ahead = np.minimum.accumulate(far - way, axis) + way
        back = np.flip(np.minimum.accumulate(np.flip(far + way, axis), axis), axis) - way
        far = np.minimum(ahead, back)
    row, column = np.unravel_index(int(far.argmax()), far.shape)
    return int(column) - 1, int(row) - 1


def with_legend(picture: Image.Image, entries: Sequence[tuple[Colour, str]]) -> Image.Image:
    """The picture with a legend below it, in as many columns as there is room for."""
    width = max(picture.width, SMALLEST)
    text_size = min(max(width // 55, 12), 24)
    letters, line, gap = font(text_size, bold=False), int(1.6 * text_size), text_size
    room = width - 2 * gap - 2 * text_size
    texts = [_shortened(printable(text), letters, room) for _, text in entries]
    column = int(max((letters.getlength(text) for text in texts), default=0)) + 2 * text_size + gap
    columns = max((width - gap) // column, 1)
    rows = -(-len(entries) // columns)
    page = Image.new("RGB", (width, picture.height + (rows * line + 2 * gap if rows else 0)), palettes.PAPER)
    page.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(page)
    for i, ((colour, _), text) in enumerate(zip(entries, texts, strict=True)):
        left, top = gap + i // rows * column, picture.height + gap + i % rows * line
        draw.rectangle((left, top, left + text_size, top + text_size), fill=colour)
        draw.text((left + int(1.5 * text_size), top + text_size / 2), text, palettes.INK, letters, anchor="lm")
    return page


def percent(share: float) -> str:
    """A share of the pixels, as people read it."""
    return "< 0.1 %" if share < 0.0005 else f"{100 * share:.1f} %"


def _pixel(picture: Image.Image, mask: Mask) -> tuple[float, float]:
    """How wide and tall a pixel of the coarse mask is in the picture."""
    height, width = mask.shape
    return picture.width / width, picture.height / height


def _free_place(
    middle: tuple[float, float],
    size: tuple[float, float],
    limits: tuple[int, int],
    taken: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float, float, float] | None:
    """A box of that size around a point, or a little above or below, that touches no other."""
    width, height = size
    x = min(max(middle[0] - width / 2, 0), max(limits[0] - width - 1, 0))
    for shift in (0, 1, -1, 2, -2):
        y = min(max(middle[1] + (shift - 0.5) * height, 0), max(limits[1] - height - 1, 0))
        box = (x, y, x + width, y + height)
        if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            return box
    return None


def _shortened(text: str, letters: ImageFont.FreeTypeFont, room: float) -> str:
    while len(text) > 1 and letters.getlength(text) > room:
        text = text[:-2] + "…"
    return text
