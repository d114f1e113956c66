"""Draws objects over an image: boxes, masks, names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from focalnet.visualize import palettes
from focalnet.visualize.canvas import original_size, printable, readable_size, with_legend, write_label

if TYPE_CHECKING:
    from torch import Tensor

Values: TypeAlias = "NDArray[Any] | Tensor"
MASK_SHARE = 0.45  # opacity of the color within a mask
LARGEST = 1600  # pixels of the long side; larger than elsewhere, because objects are small
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
    """Draws boxes, masks, names and scores over an image, one color per class, the first objects on top.

    With many objects, only names that fit their box are written, and a legend below counts the objects of each class.

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
    if masks is not None and len(masks):
        drawn = _with_masks(drawn, np.asarray(masks), labels.tolist())
    draw = ImageDraw.Draw(drawn)
    line = max(max(drawn.size) // 400, 2)
    scale = np.array([drawn.width / image.width, drawn.height / image.height] * 2, np.float32)
    scaled = np.array(boxes.tolist(), np.float32).reshape(-1, 4) * scale
    colors = [palettes.rgb(palettes.of_class(label)) for label in labels.tolist()]
    percents = [""] * len(colors) if scores is None else [f" {score:.0%}" for score in scores.tolist()]
    objects = list(zip(scaled.tolist(), colors, names, percents, strict=True))
    for box, color, _, _ in reversed(objects):
        draw.rectangle(_ordered(box), outline=color, width=line)
    crowd = len(objects) >= CROWD
    for box, color, name, percent in reversed(objects):
        write_label(drawn, box, printable(name) + percent, color, only_if_it_fits=crowd)
    if not crowd or as_frame:
        return drawn
    name_of = dict(zip(labels.tolist(), names, strict=True))
    counts = Counter(labels.tolist()).most_common()
    return with_legend(drawn, [(palettes.rgb(palettes.of_class(i)), f"{name_of[i]}  {count}") for i, count in counts])


def _with_masks(image: Image.Image, masks: NDArray[Any], labels: list[int]) -> Image.Image:
    """Tints each pixel with the color of the first object that covers it; outlines are opaque."""
    colors = np.array([palettes.rgb(palettes.of_class(label)) for label in labels], dtype=np.uint8)
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
