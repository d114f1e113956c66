"""Outlines of objects as COCO writes them: lists of polygons, or run-length codes; and as bitmaps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from focalnet.data.formats.image_entries import is_whole
from focalnet.errors import require


def segmentation_problem(segmentation: Any, size: tuple[int, int], *, may_be_empty: bool = False) -> str | None:
    """The problem with the outline of an object in an image of this height and width, if any."""
    if isinstance(segmentation, list):
        good = polygons(segmentation)
        return None if good else "its segmentation is not a list of polygons of three or more points"
    if not isinstance(segmentation, dict) or segmentation.get("size") != list(size):
        return f"its segmentation is neither polygons nor a run-length code of {size[0]} x {size[1]} pixels"
    counts = segmentation.get("counts")
    if isinstance(counts, list):
        runs = all(is_whole(run) and run >= 0 for run in counts)
        if not runs or sum(counts) != math.prod(size):
            return "the runs of its segmentation do not add up to the image"
    else:
        counts = _decoded(counts) if isinstance(counts, str) else None
        if counts is None or sum(counts) != math.prod(size):
            return "the compressed runs of its segmentation do not add up to the image"
    return None if may_be_empty or any(counts[1::2]) else "its segmentation has no pixel"


def around(segmentation: Any) -> list[float] | None:
    """The box around the polygons of a segmentation: left, top, width, height; None if it has none."""
    points = np.array([value for part in polygons(segmentation) for value in part]).reshape(-1, 2)
    if not len(points):
        return None
    (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
    return [left, top, right - left, bottom - top]


def polygons(segmentation: Any) -> list[list[float]]:
    """The polygons of a segmentation with three or more points; a flat list of numbers is one polygon."""
    parts = [segmentation] if are_numbers(segmentation) else segmentation
    return [part for part in parts if _is_polygon(part)] if isinstance(parts, list) else []


def _is_polygon(part: Any) -> bool:
    return are_numbers(part) and len(part) >= 6 and len(part) % 2 == 0


def _decoded(counts: str) -> list[int] | None:
    """The runs of a compressed run-length code; None where it is none.

    The code (cocodataset.github.io): each run in groups of five bits, lowest first, as characters from 48 on, the
    sixth bit for "more follows"; from the fourth run on the difference to the run before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        if runs[-1] < 0:
            return None
        value = shift = 0
    return None if shift else runs


def are_numbers(values: Any) -> bool:
    """Whether it is a list of finite numbers below 1e9."""
    return isinstance(values, list) and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e9 for v in values
    )  # not a number compares false


def to_bitmaps(segmentations: Sequence[Any], height: int, width: int) -> Tensor:
    """Draws segmentations as masks ``(N, height, width)``, bool.

    Args:
        segmentations: of checked annotations: lists of polygons, or run-length codes, compressed or not.
        height: of the image, in pixels.
        width: of the image, in pixels.
    """
    codes = require("pycocotools.mask", "dense")
    if not segmentations:
        return torch.zeros(0, height, width, dtype=torch.bool)
    found = []
    for segmentation in segmentations:
        if isinstance(segmentation, dict) and isinstance(segmentation["counts"], str):
            found.append(segmentation)
            continue
        parts = codes.frPyObjects(segmentation, height, width)
        found.append(codes.merge(parts) if isinstance(parts, list) else parts)  # an object may be in several pieces
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)  # pycocotools with numpy 2
        bitmaps_HWN = codes.decode(found)
    return torch.from_numpy(np.ascontiguousarray(bitmaps_HWN.transpose(2, 0, 1))).bool()
