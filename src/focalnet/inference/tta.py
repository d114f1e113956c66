"""Test-time augmentation: tiles, sizes and mirrored views of an image, and one prediction from those of all views."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from focalnet.errors import ConfigError
from focalnet.models import ScoresPixels
from focalnet.ops import boxes
from focalnet.results import Detections
from focalnet.samples import Size

#: Two boxes of a class belong to one object from this IoU on, and a box that a tile's edge cuts off belongs to a larger
#: box that covers this share of it.
SAME_OBJECT = 0.5
AT_EDGE = 2.0  # pixels within which a box counts as cut off


@dataclass(frozen=True, kw_only=True)
class Views:
    """The views of each image that a detector or segmenter predicts.

    Args:
        tile: side in pixels of square tiles that are predicted one by one, for small objects in large images and for
            images that do not fit in memory; None for the whole image.
        overlap: share of a tile's side that the next tile also covers; objects up to that size are whole in one tile.
        flip: also predict the mirrored image.
        short_sides: sizes to resize to, instead of the one that the model was trained for.
    """

    tile: int | None = None
    overlap: float = 0.25
    flip: bool = False
    short_sides: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.tile is not None and self.tile < 32:
            raise ConfigError(f"tile={self.tile} must be at least 32 pixels")
        if not 0 <= self.overlap < 1:
            raise ConfigError(f"overlap={self.overlap} must be at least 0 and below 1")
        if any(side < 32 for side in self.short_sides):
            raise ConfigError(f"short_sides={self.short_sides} must be at least 32 pixels")


@dataclass(frozen=True)
class Window:
    """A rectangle of an image, in pixels, and whether its view is mirrored."""

    left: int
    top: int
    width: int
    height: int
    mirrored: bool = False

    def of(self, pixels: Tensor) -> Tensor:
        """Returns the rectangle of an image or label map ``(..., H, W)``."""
        return pixels[..., self.top : self.top + self.height, self.left : self.left + self.width]


class View(NamedTuple):
    """One view of an image.

    Args:
        window: the tile, and whether it is mirrored.
        core: the pixels of the image that this tile decides.
        size: height and width that the tile is resized to.
    """

    window: Window
    core: Window
    size: Size


def tiles(height: int, width: int, tile: int | None, overlap: float) -> Iterator[tuple[Window, Window]]:
    """Yields tiles of equal size that cover an image, and the core of each: the pixels that are deepest within it.

    The cores cover the image once: neighbors meet in the middle of their overlap. An image that is no larger than
    ``tile`` has one tile, and so has every image if ``tile`` is None.
    """
    if tile is None:
        tile = max(height, width)
    rows, columns = _starts(height, tile, overlap), _starts(width, tile, overlap)
    for top, (core_top, core_bottom) in zip(rows, _cores(rows, tile, height), strict=True):
        for left, (core_left, core_right) in zip(columns, _cores(columns, tile, width), strict=True):
            core = Window(core_left, core_top, core_right - core_left, core_bottom - core_top)
            yield Window(left, top, min(tile, width), min(tile, height)), core


def _cores(starts: Sequence[int], tile: int, side: int) -> list[tuple[int, int]]:
    """First pixel, and last pixel plus one, of each core along one side."""
    return list(pairwise([0, *((a + tile + b) // 2 for a, b in pairwise(starts)), side]))


def _starts(side: int, tile: int, overlap: float) -> list[int]:
    """First pixel of each tile along one side: evenly spread, overlapping by at least ``overlap``."""
    if side <= tile:
        return [0]
    step = max(int(tile * (1 - overlap)), 1)
    count = -(-(side - tile) // step) + 1
    return [round(i * (side - tile) / (count - 1)) for i in range(count)]


def merge(predictions: Sequence[tuple[Window, Detections]], size: Size, limit: int) -> Detections:
    """Merges the objects that were predicted in several views of one image.

    Of boxes that belong to one object, the best is kept, with its mask. A box that a tile's edge cuts off gives way to
    a larger one that another tile has of the object.

    Args:
        predictions: the window of each view, and the objects in it, in pixels of the window (mirrored, if it is).
        size: height and width of the image.
        limit: the result has at most so many objects.
    """
    placed = [_placed(window, detections) for window, detections in predictions]
    corners, scores = torch.cat([one.boxes for one in placed]), torch.cat([one.scores for one in placed])
    labels = torch.cat([one.labels for one in placed])
    cut = torch.cat([_cut(window, one.boxes, size) for (window, _), one in zip(predictions, placed, strict=True)])
    keep = boxes.suppress(corners, scores, labels, SAME_OBJECT)
    keep = keep[~_pieces(corners[keep], labels[keep], cut[keep])][:limit]
    masks = None
    if placed[0].masks is not None:
        masks = _whole_masks([window for window, _ in predictions], placed, keep, size)
    return replace(placed[0], boxes=corners[keep], scores=scores[keep], labels=labels[keep], masks=masks, size=size)


def _placed(window: Window, detections: Detections) -> Detections:
    """Moves boxes from the window into the image, and undoes the mirroring of boxes and masks."""
    corners, masks = detections.boxes, detections.masks
    if window.mirrored:
        corners = torch.stack(
            [window.width - corners[:, 2], corners[:, 1], window.width - corners[:, 0], corners[:, 3]], 1
        )
        masks = None if masks is None else masks.flip(-1)
    offset = corners.new_tensor([window.left, window.top] * 2)
    return replace(detections, boxes=corners + offset, masks=masks)


def _cut(window: Window, corners: Tensor, size: Size) -> Tensor:
    """Which boxes end at an edge of the window that is not an edge of the image."""
    height, width = size
    edges = torch.tensor([window.left, window.top, window.left + window.width, window.top + window.height])
    inner = edges != torch.tensor([0, 0, width, height])
    return ((corners - edges.to(corners)).abs() <= AT_EDGE).logical_and(inner.to(corners.device)).any(1)


def _pieces(corners: Tensor, labels: Tensor, cut: Tensor) -> Tensor:
    """Which cut boxes lie mostly within a larger one of their class."""
    area = (corners[:, 2:] - corners[:, :2]).prod(1)
    pieces = torch.zeros_like(cut)
    for some in torch.split(cut.nonzero().flatten(), 1024):  # thousands of tiles have hundreds of thousands of boxes
        larger = (area[None] > area[some, None]) & (labels[None] == labels[some, None])
        pieces[some] = ((boxes.cover(corners[some], corners) > SAME_OBJECT) & larger).any(1)
    return pieces


def _whole_masks(windows: Sequence[Window], placed: Sequence[Detections], keep: Tensor, size: Size) -> Tensor:
    """Masks ``(N, height, width)`` of the image; only those that are kept are made that large."""
    counts = torch.tensor([len(one) for one in placed])
    ends = counts.cumsum(0)
    masks = torch.zeros((len(keep), *size), dtype=torch.bool)
    for mask, index in zip(masks, keep.tolist(), strict=True):
        view = int(torch.searchsorted(ends, index, right=True))
        window_masks = placed[view].masks
        assert window_masks is not None
        windows[view].of(mask).copy_(window_masks[index - int(ends[view] - counts[view])])
    return masks


def meeting_size(tile: Size, sizes: Sequence[Size]) -> Size:
    """The size at which to average the scores of a tile's views: the tile's, or that of the largest view if smaller.

    A larger one would hold no more detail.
    """
    return min(tile, max(sizes, key=math.prod), key=math.prod)


def mean_scores(scores: Iterable[Tensor], size: Size, *, logits: bool) -> Tensor:
    """Returns the mean of the class probabilities of several views of the same pixels, ``(N, *size)``.

    Args:
        scores: of each view, ``(N, h, w)``.
        size: height and width that all are resized to.
        logits: whether a softmax makes them probabilities; otherwise they are averaged as they are.
    """
    total: Tensor | float = 0.0
    count = 0
    for of_view in scores:
        resized = F.interpolate(of_view[None].float(), size, mode="bilinear")[0]
        total = total + (resized.softmax(0) if logits else resized)
        count += 1
    assert isinstance(total, Tensor)
    return total / count


def slide(network: ScoresPixels[Any, Any], images_BCHW: Tensor, crop: Size, stride: Size) -> Tensor:
    """Returns class scores ``(B, N, H, W)`` of images by a sliding window, as mmseg does it.

    Where windows overlap, their scores are averaged. The last window of each row and column is shifted inwards.

    Args:
        network: gives the scores of each window at the window's size.
        images_BCHW: normalized.
        crop: height and width of the window, multiples of the network's ``size_divisor``; a smaller image is one
            window.
        stride: how far the window moves, down and to the right.

    Raises:
        ConfigError: a window or stride without pixels, a stride that leaves gaps, or a window whose sides are not
            such multiples.
    """
    for name, (down, right) in (("crop", crop), ("stride", stride)):
        if min(down, right) < 1:
            raise ConfigError(f"{name}={(down, right)} must be at least 1 pixel each way")
    if stride[0] > crop[0] or stride[1] > crop[1]:
        raise ConfigError(f"stride={stride} leaves gaps between windows of crop={crop}: make it no larger")
    check_window(crop, network.config.size_divisor)
    batch, (height, width) = len(images_BCHW), images_BCHW.shape[2:]
    total = images_BCHW.new_zeros((batch, network.config.num_classes, height, width))
    count = images_BCHW.new_zeros((height, width))
    for top in _stops(height, crop[0], stride[0]):
        for left in _stops(width, crop[1], stride[1]):
            window = Window(left, top, min(crop[1], width), min(crop[0], height))
            window.of(total).add_(network.class_scores(window.of(images_BCHW)))
            window.of(count).add_(1)
    return total / count


def check_window(crop: Size, divisor: int, name: str = "crop") -> None:
    """Raises ConfigError unless a window's sides are multiples of a network's ``size_divisor``."""
    for side in crop:
        if side % divisor:
            near = max(round(side / divisor), 1) * divisor
            raise ConfigError(f"{name}={side} must be a multiple of the network's size_divisor={divisor}: take {near}")


def _stops(side: int, crop: int, stride: int) -> list[int]:
    """First pixel of each position of the sliding window along one side."""
    count = max(side - crop + stride - 1, 0) // stride + 1
    return [max(min(i * stride, side - crop), 0) for i in range(count)]
