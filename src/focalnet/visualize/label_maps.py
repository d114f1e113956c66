"""An image with the areas of a label map laid over it: their colors, names in their midst, and a legend below."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw

from focalnet.visualize import palettes
from focalnet.visualize.canvas import label_font, original_size, printable, readable_size, with_legend

Mask: TypeAlias = "npt.NDArray[np.bool_]"

SMALLEST, LARGEST = 640, 1600  # pixels of the long side
COLOR_SHARE = 0.55  # of the color within an area
COARSE = 200  # pixels of the long side, in which the middle of an area is looked for
FLAT = 3.0  # names are wider than tall: so many times as far from an area's left and right as from above and below


class Area(NamedTuple):
    """One area of a label map: all pixels of a class, or of one object.

    Args:
        id: its value in the map.
        label: class index, which chooses the color; areas of one class have shades of it, in their order.
        name: is written on it.
        share: of all pixels, 0 to 1.
    """

    id: int
    label: int
    name: str
    share: float


class _Colored(NamedTuple):
    """What is drawn of an area."""

    id: int
    name: str
    color: palettes.RGB


def draw_label_map(
    image: Image.Image,
    ids_HW: torch.Tensor,
    areas: Sequence[Area],
    *,
    legend: Sequence[tuple[int, str]] | None = None,
    smallest_named: float = 0.0,
    as_frame: bool = False,
) -> Image.Image:
    """Lays areas over an image, each in its color and named; pixels of no area are dark.

    Args:
        image: is left as it is.
        ids_HW: integers, the area of each pixel.
        areas: what the ids stand for; others are of no area.
        legend: class indices and what is written of them below the image. Without, images of one size stay of one.
        smallest_named: areas with a smaller share of the pixels get no name.
        as_frame: keep the size of the image, and draw no legend: all frames of a video have one size.
    """
    drawn = original_size(image) if as_frame else readable_size(image, SMALLEST, LARGEST)
    counts = Counter(area.label for area in areas)
    shades = {label: iter(palettes.shades(palettes.of_region(label), count)) for label, count in counts.items()}
    colored = [(area.share, _Colored(area.id, area.name, next(shades[area.label]))) for area in areas]
    ids = sampled(ids_HW, drawn.size)
    drawn = _lay_over(drawn, ids, [area for _, area in colored])
    # The largest first, so that it is the small ones whose names may find no room.
    largest = sorted(colored, key=lambda pair: -pair[0])
    _write_names(drawn, ids, [area for share, area in largest if share >= smallest_named])
    if legend is None or as_frame:
        return drawn
    return with_legend(drawn, [(palettes.of_region(label), text) for label, text in legend])


def sampled(ids_HW: torch.Tensor, size: tuple[int, int]) -> npt.NDArray[np.int64]:
    """A label map at another width and height, by nearest neighbor and without a copy of its own size."""
    width, height = size
    rows = ((torch.arange(height) + 0.5) * ids_HW.shape[0] / height).long()
    columns = ((torch.arange(width) + 0.5) * ids_HW.shape[1] / width).long()
    ids: npt.NDArray[np.int64] = ids_HW.cpu()[rows[:, None], columns].long().numpy()
    return ids


def deepest(mask: Mask) -> tuple[int, int]:
    """Column and row of the pixel that is farthest from everything outside the mask, the image's edge included."""
    far = np.where(np.pad(mask, 1), np.inf, 0.0)
    for axis, step in ((0, 1.0), (1, 1 / FLAT)):
        way = np.arange(far.shape[axis]) * step
        way = way[:, None] if axis == 0 else way
        ahead = np.minimum.accumulate(far - way, axis) + way
        back = np.flip(np.minimum.accumulate(np.flip(far + way, axis), axis), axis) - way
        far = np.minimum(ahead, back)
    row, column = np.unravel_index(int(far.argmax()), far.shape)
    return int(column) - 1, int(row) - 1


def _lay_over(image: Image.Image, ids: npt.NDArray[np.int64], areas: Sequence[_Colored]) -> Image.Image:
    """Tints each area and draws a thin white line between them; pixels of none are darkened."""
    place = {area.id: i for i, area in enumerate(areas)}
    present, index = np.unique(ids, return_inverse=True)
    colors = np.array([*(area.color for area in areas), palettes.rgb(palettes.NOTHING)], dtype=np.float32)
    owner = np.array([place.get(int(one), len(areas)) for one in present])[index.reshape(ids.shape)]
    tinted = (1 - COLOR_SHARE) * np.asarray(image, dtype=np.float32) + COLOR_SHARE * colors[owner]
    line = np.zeros(owner.shape, dtype=bool)
    line[:, 1:] |= owner[:, 1:] != owner[:, :-1]
    line[1:] |= owner[1:] != owner[:-1]
    tinted[line] = 0.3 * tinted[line] + 0.7 * 255
    return Image.fromarray(tinted.astype(np.uint8))


def _write_names(image: Image.Image, ids: npt.NDArray[np.int64], areas: Sequence[_Colored]) -> None:
    """Writes each name where its area is widest, the first ones first; where there is no room, it is left out."""
    draw, letters = ImageDraw.Draw(image), label_font(image.size)
    scale = max(max(image.size) / COARSE, 1.0)
    width, height = (max(round(side / scale), 1) for side in image.size)
    coarse = sampled(torch.from_numpy(ids), (width, height))
    pixel = image.width / width, image.height / height  # of the coarse map, in the image
    taken: list[tuple[float, float, float, float]] = []
    for area in areas:
        mask = coarse == area.id
        if not mask.any():  # smaller than a coarse pixel
            continue
        x, y = ((middle + 0.5) * side for middle, side in zip(deepest(mask), pixel, strict=True))
        text = printable(area.name)
        left, top, right, bottom = draw.textbbox((0, 0), text, letters)
        size = (right - left + 6, bottom - top + 6)
        box = _free_place((x, y), size, image.size, taken)
        if box is None:
            continue
        taken.append(box)
        draw.rectangle(box, fill=area.color)
        draw.text((box[0] + 3 - left, box[1] + 3 - top), text, palettes.ink_on(area.color), letters)


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
