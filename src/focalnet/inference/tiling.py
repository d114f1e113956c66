"""Looking at a picture in several ways, and making one result of them: tiles, sizes, mirrored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from focalnet.errors import ConfigError
from focalnet.ops import boxes
from focalnet.results import Detections

#: Two boxes of a class are of one object from this IoU on; and a box that is cut off by a tile's edge from this share
#: of it within another.
SAME_OBJECT = 0.5
AT_EDGE = 2.0  # pixels within which a box counts as cut off


@dataclass(frozen=True, kw_only=True)
class Looks:
    """In how many ways a detector or segmenter looks at each picture.

    Args:
        tile: side in pixels of square parts that are looked at one by one, for what is small in a large picture, and
            for pictures larger than memory; None for the whole picture.
        overlap: of neighbouring tiles, share of their side; objects up to that size are seen whole by one of them.
        flip: also mirrored.
        short_sides: sizes to resize to, in place of the one the model was trained for.
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
    """A part of a picture, in its pixels, and whether it is looked at mirrored."""

    left: int
    top: int
    width: int
    height: int
    mirrored: bool = False

    def of(self, pixels: Tensor) -> Tensor:
        """The part of a picture or map ``(..., H, W)``."""
        return pixels[..., self.top : self.top + self.height, self.left : self.left + self.width]


def windows(height: int, width: int, tile: int | None, overlap: float) -> Iterator[Window]:
    """Parts of equal size that cover a picture; one, if it is no larger than a tile or ``tile`` is None."""
    for window, _ in tiles(height, width, tile, overlap):
        yield window


def tiles(height: int, width: int, tile: int | None, overlap: float) -> Iterator[tuple[Window, Window]]:
    """The parts of ``windows``, each with its core: where no other part has its own edge farther away.

    The cores cover the picture once: neighbours meet in the middle of what they share.
    """
    if tile is None:
        tile = max(height, width)
    rows, columns = _starts(height, tile, overlap), _starts(width, tile, overlap)
    for top, (core_top, core_bottom) in zip(rows, _cores(rows, tile, height), strict=True):
        for left, (core_left, core_right) in zip(columns, _cores(columns, tile, width), strict=True):
            core = Window(core_left, core_top, core_right - core_left, core_bottom - core_top)
            yield Window(left, top, min(tile, width), min(tile, height)), core


def _cores(starts: Sequence[int], tile: int, side: int) -> list[tuple[int, int]]:
    """First and last plus one of the pixels that lie deeper within a tile than within its neighbours."""
    return list(pairwise([0, *((a + tile + b) // 2 for a, b in pairwise(starts)), side]))


def _starts(side: int, tile: int, overlap: float) -> list[int]:
    """Evenly spread, overlapping by at least ``overlap``."""
    if side <= tile:
        return [0]
    step = max(int(tile * (1 - overlap)), 1)
    count = -(-(side - tile) // step) + 1
    return [round(i * (side - tile) / (count - 1)) for i in range(count)]


def merge(looks: Sequence[tuple[Window, Detections]], size: tuple[int, int], limit: int) -> Detections:
    """One result of what was found in several parts of a picture, or by looking at it several times.

    An object that was found more than once keeps its best box, and the mask that came with it. Of an object
    that a tile's edge cuts, the piece goes where another tile sees more of it.

    Args:
        looks: parts and what was found in each, in pixels of the part (mirrored, if it was).
        size: height and width of the picture.
        limit: most objects of the result.
    """
    placed = [_placed(window, found) for window, found in looks]
    corners, scores = torch.cat([found.boxes for found in placed]), torch.cat([found.scores for found in placed])
    labels = torch.cat([found.labels for found in placed])
    cut = torch.cat([_cut(window, found.boxes, size) for (window, _), found in zip(looks, placed, strict=True)])
    keep = batched_nms(corners, scores, labels, SAME_OBJECT)
    keep = keep[~_pieces(corners[keep], labels[keep], cut[keep])][:limit]
    masks = None
    if placed[0].masks is not None:
        masks = _whole_masks([window for window, _ in looks], placed, keep, size)
    return replace(placed[0], boxes=corners[keep], scores=scores[keep], labels=labels[keep], masks=masks, size=size)


def _placed(window: Window, found: Detections) -> Detections:
    """Boxes in pixels of the picture; masks of the part, no longer mirrored."""
    corners, masks = found.boxes, found.masks
    if window.mirrored:
        corners = torch.stack(
            [window.width - corners[:, 2], corners[:, 1], window.width - corners[:, 0], corners[:, 3]], 1
        )
        masks = None if masks is None else masks.flip(-1)
    offset = corners.new_tensor([window.left, window.top] * 2)
    return replace(found, boxes=corners + offset, masks=masks)


def _cut(window: Window, corners: Tensor, size: tuple[int, int]) -> Tensor:
    """Which boxes end at an edge of the part that is not one of the picture."""
    height, width = size
    edges = torch.tensor([window.left, window.top, window.left + window.width, window.top + window.height])
    inner = edges != torch.tensor([0, 0, width, height])
    return ((corners - edges.to(corners)).abs() <= AT_EDGE).logical_and(inner.to(corners.device)).any(1)


def _pieces(corners: Tensor, labels: Tensor, cut: Tensor) -> Tensor:
    """Which cut boxes lie mostly within a larger one of their class."""
    area = (corners[:, 2:] - corners[:, :2]).prod(1)
    larger = (area[None] > area[:, None]) & (labels[None] == labels[:, None])
    return cut & ((boxes.cover(corners, corners) > SAME_OBJECT) & larger).any(1)


def _whole_masks(parts: Sequence[Window], placed: Sequence[Detections], keep: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks ``(N, height, width)`` of the picture; only those kept are made that large."""
    counts = torch.tensor([len(found) for found in placed])
    ends = counts.cumsum(0)
    masks = torch.zeros((len(keep), *size), dtype=torch.bool)
    for place, index in enumerate(keep.tolist()):
        part = int(torch.searchsorted(ends, index, right=True))
        window, found = parts[part], placed[part]
        assert found.masks is not None
        mask = found.masks[index - int(ends[part] - counts[part])]
        masks[place, window.top : window.top + window.height, window.left : window.left + window.width] = mask
    return masks
