"""Draws the areas of a label map over an image: their colors, names in their middle, and a legend below."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from focalnet.visualize import palettes
from focalnet.visualize.canvas import label_font, original_size, printable, readable_size, with_legend

if TYPE_CHECKING:
    from torch import Tensor

Mask: TypeAlias = "npt.NDArray[np.bool_]"
Ids: TypeAlias = "npt.NDArray[Any] | Tensor"

SMALLEST, LARGEST = 640, 1600  # pixels of the long side
COLOR_SHARE = 0.55  # opacity of the color within an area
COARSE = 200  # pixels of the long side of the map in which the middle of an area is computed
FLAT = 3.0  # names are wide: horizontal distances to the edge of an area must be this many times the vertical ones


class Area(NamedTuple):
    """One area of a label map: all pixels of a class or of one object.

    Attributes:
        id: its value in the map.
        label: class index, which determines the color; areas of the same class have shades of it.
        name: text to write on the area.
        share: of all pixels, 0 to 1.
    """

    id: int
    label: int
    name: str
    share: float


class _Colored(NamedTuple):
    """An area with its color."""

    id: int
    name: str
    color: palettes.RGB


def draw_label_map(
    image: Image.Image,
    ids_HW: Ids,
    areas: Sequence[Area],
    *,
    legend: Sequence[tuple[int, str]] | None = None,
    smallest_named: float = 0.0,
    names: Sequence[str] = (),
    as_frame: bool = False,
) -> Image.Image:
    """Draws areas over an image with their colors and names; pixels of no area are darkened.

    Args:
        image: not modified.
        ids_HW: integers, the area id of each pixel, an array or a tensor on the CPU.
        areas: the areas; other ids belong to no area.
        legend: class indices and their text in the legend below the image; None for no legend, which keeps equal
            sizes equal.
        smallest_named: areas with a smaller share of the pixels get no name.
        names: of all classes, by label; those of a well-known data set have its colors.
        as_frame: keep the image size and draw no legend, because all frames of a video have the same size.
    """
    drawn = original_size(image) if as_frame else readable_size(image, SMALLEST, LARGEST)
    counts = Counter(area.label for area in areas)
    color = {label: palettes.of_map(label, names) for label in {*counts, *(label for label, _ in legend or ())}}
    shades = {label: iter(palettes.shades(color[label], count)) for label, count in counts.items()}
    colored = [(area.share, _Colored(area.id, area.name, next(shades[area.label]))) for area in areas]
    ids = sampled(ids_HW, drawn.size)
    drawn = _lay_over(drawn, ids, [area for _, area in colored])
    # The largest areas first, so that names of small areas are left out if there is no room.
    largest = sorted(colored, key=lambda pair: -pair[0])
    _write_names(drawn, ids, [area for share, area in largest if share >= smallest_named])
    if legend is None or as_frame:
        return drawn
    return with_legend(drawn, [(color[label], text) for label, text in legend])


def sampled(ids_HW: Ids, size: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Resizes a label map to a width and height by nearest neighbor, without a full-size copy."""
    width, height = size
    half = np.float32(0.5)
    rows = ((np.arange(height, dtype=np.float32) + half) * ids_HW.shape[0] / height).astype(np.int64)
    columns = ((np.arange(width, dtype=np.float32) + half) * ids_HW.shape[1] / width).astype(np.int64)
    ids: npt.NDArray[np.int64] = np.asarray(ids_HW)[rows[:, None], columns].astype(np.int64)
    return ids


def deepest(mask: Mask) -> tuple[int, int]:
    """Column and row of the pixel of a mask that is farthest from its edge and the edge of the image."""
    distance = np.where(np.pad(mask, 1), np.inf, 0.0)
    for axis, step in ((0, 1.0), (1, 1 / FLAT)):
        position = np.arange(distance.shape[axis]) * step
        position = position[:, None] if axis == 0 else position
        before = np.minimum.accumulate(distance - position, axis) + position
        after = np.flip(np.minimum.accumulate(np.flip(distance + position, axis), axis), axis) - position
        distance = np.minimum(before, after)
    row, column = np.unravel_index(int(distance.argmax()), distance.shape)
    return int(column) - 1, int(row) - 1


def _lay_over(image: Image.Image, ids: npt.NDArray[np.int64], areas: Sequence[_Colored]) -> Image.Image:
    """Tints each area and draws thin white lines between areas; pixels of no area are darkened."""
    index_of = {area.id: i for i, area in enumerate(areas)}
    present, index = np.unique(ids, return_inverse=True)
    colors = np.array([*(area.color for area in areas), palettes.rgb(palettes.NOTHING)], dtype=np.float32)
    owner = np.array([index_of.get(int(area_id), len(areas)) for area_id in present])[index.reshape(ids.shape)]
    tinted = (1 - COLOR_SHARE) * np.asarray(image, dtype=np.float32) + COLOR_SHARE * colors[owner]
    line = np.zeros(owner.shape, dtype=bool)
    line[:, 1:] |= owner[:, 1:] != owner[:, :-1]
    line[1:] |= owner[1:] != owner[:-1]
    tinted[line] = 0.3 * tinted[line] + 0.7 * 255
    return Image.fromarray(tinted.astype(np.uint8))


def _write_names(image: Image.Image, ids: npt.NDArray[np.int64], areas: Sequence[_Colored]) -> None:
    """Writes names in the middle of their areas, in order; a name without room is left out."""
    draw, letters = ImageDraw.Draw(image), label_font(image.size)
    scale = max(max(image.size) / COARSE, 1.0)
    width, height = (max(round(side / scale), 1) for side in image.size)
    coarse = sampled(ids, (width, height))
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
    """A box of this size around a point, or a little above or below, that overlaps no other; None if there is none."""
    width, height = size
    x = min(max(middle[0] - width / 2, 0), max(limits[0] - width - 1, 0))
    for shift in (0, 1, -1, 2, -2):
        y = min(max(middle[1] + (shift - 0.5) * height, 0), max(limits[1] - height - 1, 0))
        box = (x, y, x + width, y + height)
        if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            return box
    return None
