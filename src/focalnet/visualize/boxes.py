"""Draws objects over an image: boxes, masks, and names where they hide little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from focalnet.visualize import palettes
from focalnet.visualize.canvas import label_size, original_size, printable, readable_size, with_legend, write_text

Box: TypeAlias = "tuple[float, float, float, float]"  # x1 y1 x2 y2

if TYPE_CHECKING:
    from torch import Tensor

Values: TypeAlias = "NDArray[Any] | Tensor"
MASK_SHARE = 0.45  # opacity of the color within a mask
LARGEST = 1600  # pixels of the long side; larger than elsewhere, because objects are small
FAR = 1e5  # pixels beyond which boxes are cut off: Pillow's coordinates are 32-bit integers
CROWD = 20  # with this many objects, names wider than their object would hide others


def draw_boxes(
    image: Image.Image,
    boxes: Values,
    labels: Values,
    names: Sequence[str],
    scores: Values | None = None,
    masks: Values | None = None,
    *,
    as_frame: bool = False,
) -> Image.Image:
    """Draws boxes, masks, names and scores over an image, the first objects on top.

    The objects of a class have shades of one color. Names do not overlap, and cover other objects as little as
    possible; one for which there is no room is left out. With many objects, only names that fit their box are written,
    and a legend below counts the objects of each class.

    Args:
        image: not modified.
        boxes: ``(N, 4)``, x1 y1 x2 y2 in pixels of the image.
        labels: ``(N,)``, class indices, which choose the colors.
        names: of each object's class.
        scores: ``(N,)``, 0 to 1, written after the names; None for targets.
        masks: ``(N, height, width)``, bool, an array or a tensor on the CPU.
        as_frame: keep the image size and draw no legend, because all frames of a video have the same size.
    """
    drawn = original_size(image) if as_frame else readable_size(image, largest=LARGEST)
    counts = Counter(labels.tolist())
    alone = len(counts) == 1
    shades = {
        label: iter(palettes.shades(palettes.rgb(palettes.of_class(label)), count, alone=alone))
        for label, count in counts.items()
    }
    colors = [next(shades[label]) for label in labels.tolist()]
    if masks is not None and len(masks):
        drawn = _with_masks(drawn, np.asarray(masks), colors)
    draw = ImageDraw.Draw(drawn)
    line = max(max(drawn.size) // 400, 2)
    scale = np.array([drawn.width / image.width, drawn.height / image.height] * 2, np.float32)
    scaled = np.nan_to_num(np.array(boxes.tolist(), np.float32).reshape(-1, 4) * scale).clip(-FAR, FAR)
    percents = [""] * len(colors) if scores is None else [f" {score:.0%}" for score in scores.tolist()]
    places = [_ordered(box) for box in scaled.tolist()]
    for box, color in reversed(list(zip(places, colors, strict=True))):
        draw.rectangle(box, outline=color, width=line)
    crowd = len(places) >= CROWD
    texts = [printable(name) + percent for name, percent in zip(names, percents, strict=True)]
    sizes = [label_size(drawn, text) for text in texts]
    wanted = [not crowd or size[0] <= box[2] - box[0] for size, box in zip(sizes, places, strict=True)]
    found = place_labels(places, [size if some else None for size, some in zip(sizes, wanted, strict=True)], drawn.size)
    for place, text, color in reversed(list(zip(found, texts, colors, strict=True))):
        if place is not None:
            write_text(drawn, place, text, color)
    if not crowd or as_frame:
        return drawn
    name_of = dict(zip(labels.tolist(), names, strict=True))
    entries = [
        (palettes.rgb(palettes.of_class(label)), f"{name_of[label]}  {count}") for label, count in counts.most_common()
    ]
    return with_legend(drawn, entries)


def place_labels(
    boxes: Sequence[Box], sizes: Sequence[tuple[int, int] | None], limits: tuple[int, int]
) -> list[Box | None]:
    """Places for the labels of boxes, in order: beside, above, below or within each, where they hide least.

    A place may not overlap that of another label. The cost of one is the sum of the shares of the boxes that it covers;
    of equal ones, the first is taken: above the box at its left, below it, above at its right, ...

    Args:
        boxes: x1 y1 x2 y2.
        sizes: width and height of each label; None for no label.
        limits: width and height of the image.

    Returns:
        x1 y1 x2 y2, within the image if the label fits into it; None without a label or where there is no room.
    """
    objects = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    areas = np.maximum((objects[:, 2] - objects[:, 0]) * (objects[:, 3] - objects[:, 1]), 1)
    taken = np.zeros((0, 4))
    found: list[Box | None] = []
    for box, size in zip(boxes, sizes, strict=True):
        if size is None:
            found.append(None)
            continue
        x1, y1, x2, y2 = box
        width, height = size
        corners = [
            (x1, y1 - height), (x1, y2), (x2 - width, y1 - height), (x2 - width, y2), (x2, y1), (x1 - width, y1),
            (x1, y1), (x2 - width, y2 - height), (x1, y1 - 2 * height), (x1, y2 + height),
        ]  # fmt: skip
        places = np.array([(x, y, x + width, y + height) for x, y in corners], dtype=np.float64)
        shift = np.maximum(-places[:, :2], 0) + np.minimum(np.array(limits) - 1 - places[:, 2:], 0)
        shift = np.where(places[:, :2] + shift < 0, -places[:, :2], shift)  # larger than the image: from its corner
        places += np.tile(shift, 2)
        costs = (_shared(places, objects) / areas).sum(1)
        costs[_shared(places, taken).sum(1) > 0] = np.inf
        best = int(costs.argmin())
        if np.isinf(costs[best]):
            found.append(None)
            continue
        taken = np.concatenate([taken, places[best][None]])
        left, top, right, bottom = places[best].tolist()
        found.append((left, top, right, bottom))
    return found


def _shared(places: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pixels that each place shares with each box, ``(places, boxes)``."""
    low = np.maximum(places[:, None, :2], boxes[None, :, :2])
    high = np.minimum(places[:, None, 2:], boxes[None, :, 2:])
    shared: NDArray[np.float64] = (high - low).clip(min=0).prod(-1)
    return shared


def _with_masks(image: Image.Image, masks: NDArray[Any], shades: Sequence[palettes.RGB]) -> Image.Image:
    """Tints each pixel with the color of the first object that covers it; outlines are opaque."""
    colors = np.array(shades, dtype=np.uint8)
    owner = np.where(masks.any(0), masks.argmax(0), -1)
    large = np.asarray(Image.fromarray(owner.astype(np.int32)).resize(image.size, Image.Resampling.NEAREST))
    covered = large >= 0
    pixels = np.asarray(image).copy()
    mixed = (1 - MASK_SHARE) * pixels[covered] + MASK_SHARE * colors[large[covered]]
    pixels[covered] = mixed.astype(np.uint8)
    edge = _edges(large) & covered
    pixels[edge] = colors[large[edge]]
    return Image.fromarray(pixels)


def _edges(owner: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Pixels with a neighbor that belongs to another object."""
    edge = np.zeros(owner.shape, dtype=bool)
    edge[:, :-1] |= owner[:, :-1] != owner[:, 1:]
    edge[:, 1:] |= owner[:, :-1] != owner[:, 1:]
    edge[:-1] |= owner[:-1] != owner[1:]
    edge[1:] |= owner[:-1] != owner[1:]
    return edge


def _ordered(box: list[float]) -> tuple[float, float, float, float]:
    """Pillow refuses boxes of negative size, which an untrained network may return."""
    left, top, right, bottom = box
    return left, top, max(right, left), max(bottom, top)
