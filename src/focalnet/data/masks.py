"""Outlines of objects as bitmaps; pycocotools draws them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from focalnet.errors import require


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
