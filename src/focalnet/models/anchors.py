"""Anchors of a feature pyramid, for heads that predict at every cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from focalnet.ops.anchors import base_anchors, grid_anchors, inside_image
from focalnet.samples import Size


@dataclass(frozen=True)
class AnchorGrid:
    """Generates the anchors of every level of a feature pyramid.

    Args:
        scale: side of an anchor, in cells of its level.
        ratios: aspect ratios, height over width.
        strides: pixels per cell of each level.
    """

    scale: float
    ratios: tuple[float, ...]
    strides: tuple[int, ...]

    def __call__(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Anchors ``(H W A, 4)`` of each feature map ``(B, C, H, W)``, float32."""
        return [
            grid_anchors(base_anchors(stride, self.scale, self.ratios).to(x.device), stride, (x.shape[2], x.shape[3]))
            for x, stride in zip(features, self.strides, strict=True)
        ]

    def on_image(self, features: Sequence[Tensor], sizes: Sequence[Size], divisor: int) -> Tensor:
        """Mask of the anchors on each image, not on batch padding: ``(B, all anchors)``, bool.

        The image includes its own padding, up to the next multiple of ``divisor``.
        """
        masks = []
        for height, width in sizes:
            padded = (-(-height // divisor) * divisor, -(-width // divisor) * divisor)
            levels = [
                inside_image((x.shape[2], x.shape[3]), stride, padded, len(self.ratios))
                for x, stride in zip(features, self.strides, strict=True)
            ]
            masks.append(torch.cat(levels))
        return torch.stack(masks).to(features[0].device)
