"""A picture with the objects that were found in it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from focalnet.errors import ConfigError
from focalnet.results import Detections
from focalnet.visualize import palettes
from focalnet.visualize.areas import with_legend
from focalnet.visualize.canvas import font, original_size, printable, readable_size

MASK_SHARE = 0.45  # of the colour within a mask
LARGEST = 1600  # pixels of the long side: objects are smaller than their picture
CROWD = 20  # from so many objects on, names that are wider than their object would hide the others


def draw_detections(result: Detections, *, scores: bool = True, as_frame: bool = False) -> Image.Image:
    """Draws boxes, masks, names and scores over the picture, one colour a class, the best objects on top.

    In a crowd, names are written only where they are no wider than their object, and a legend below counts the classes.

    Args:
        result: with its picture.
        scores: write them behind the names; true objects have none.
        as_frame: keep the size of the image, and draw no legend: all frames of a video have one size.

    Raises:
        ConfigError: the result carries no picture.
    """
    if result.image is None:
        raise ConfigError(f"nothing to draw on: the detections of {result.path or 'this picture'} have no image")
    picture = original_size(result.image) if as_frame else readable_size(result.image, largest=LARGEST)
    if result.masks is not None and len(result):
        picture = _with_masks(picture, result.masks, result.labels)
    draw = ImageDraw.Draw(picture)
    line = max(max(picture.size) // 400, 2)
    scale = torch.tensor([picture.width / result.image.width, picture.height / result.image.height] * 2)
    boxes = (result.boxes.cpu() * scale).tolist()
    rows = list(zip(boxes, result.labels.tolist(), result.scores.tolist(), strict=True))
    for box, label, _ in reversed(rows):
        draw.rectangle(_ordered(box), outline=palettes.of_class(label), width=line)
    crowd = len(result) >= CROWD
    for box, label, score in reversed(rows):
        text = printable(result.name(label)) + (f" {score:.0%}" if scores else "")
        _write(draw, box, text, palettes.of_class(label), picture.size, only_if_it_fits=crowd)
    if not crowd or as_frame:
        return picture
    counts = Counter(result.labels.tolist()).most_common()
    return with_legend(picture, [(palettes.rgb(palettes.of_class(n)), f"{result.name(n)}  {c}") for n, c in counts])


def _with_masks(picture: Image.Image, masks: torch.Tensor, labels: torch.Tensor) -> Image.Image:
    """Each pixel takes on the colour of the best object it belongs to, and outlines are drawn in full."""
    first = masks.int().argmax(0)  # objects come best first
    colours = np.array([palettes.rgb(palettes.of_class(int(label))) for label in labels], dtype=np.uint8)
    owner: NDArray[np.int64] = torch.where(masks.any(0), first, -1).cpu().numpy()
    large = np.asarray(Image.fromarray(owner.astype(np.int32)).resize(picture.size, Image.Resampling.NEAREST))
    covered = large >= 0
    pixels = np.asarray(picture).copy()
    mixed = (1 - MASK_SHARE) * pixels[covered] + MASK_SHARE * colours[large[covered]]
    pixels[covered] = mixed.astype(np.uint8)
    edge = _edges(large) & covered
    pixels[edge] = colours[large[edge]]
    return Image.fromarray(pixels)


def _edges(owner: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Pixels whose right or lower neighbour belongs to another object."""
    edge = np.zeros(owner.shape, dtype=bool)
    edge[:, :-1] |= owner[:, :-1] != owner[:, 1:]
    edge[:, 1:] |= owner[:, :-1] != owner[:, 1:]
    edge[:-1] |= owner[:-1] != owner[1:]
    edge[1:] |= owner[:-1] != owner[1:]
    return edge


def _write(
    draw: ImageDraw.ImageDraw,
    box: list[float],
    text: str,
    colour: str,
    size: tuple[int, int],
    *,
    only_if_it_fits: bool,
) -> None:
    """A label above the box, or within it where there is no room above."""
    letters = font(min(max(max(size) // 60, 11), 24), bold=False)
    left, top, right, bottom = draw.textbbox((0, 0), text, letters)
    width, height = right - left + 6, bottom - top + 6
    if only_if_it_fits and width > box[2] - box[0]:
        return
    x = min(max(box[0], 0), max(size[0] - width, 0))
    y = box[1] - height if box[1] >= height else box[1]
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    draw.text((x + 3 - left, y + 3 - top), text, palettes.PAPER, letters)


def _ordered(box: list[float]) -> tuple[float, float, float, float]:
    """Pillow refuses boxes of negative size, which an untrained network may well return."""
    left, top, right, bottom = box
    return left, top, max(right, left), max(bottom, top)
