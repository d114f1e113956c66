"""The anchors of a pyramid, for every head that predicts at every cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from focalnet.ops.anchors import base_anchors, grid_anchors, inside_image
from focalnet.samples import Size


@dataclass(frozen=True)
class AnchorGrid:
    """Where the anchors are.

    Args:
        scale: side of an anchor in cells.
        ratios: heights over widths.
        strides: pixels per cell of each level.
    """

    scale: float
    ratios: tuple[float, ...]
    strides: tuple[int, ...]

    def __call__(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Anchors ``(H W A, 4)`` of each map ``(B, C, H, W)``, float32."""
        return [
            grid_anchors(base_anchors(stride, self.scale, self.ratios).to(x.device), stride, (x.shape[2], x.shape[3]))
            for x, stride in zip(maps, self.strides, strict=True)
        ]

    def on_image(self, maps: Sequence[Tensor], sizes: Sequence[Size], divisor: int) -> Tensor:
        """Which anchors lie on each image rather than on what pads it to the batch: ``(B, all anchors)``, bool.

        An image counts up to the multiple of ``divisor`` it would be padded to alone.
        """
        rows = []
        for height, width in sizes:
            padded = (-(-height // divisor) * divisor, -(-width // divisor) * divisor)
            levels = [
                inside_image((x.shape[2], x.shape[3]), stride, padded, len(self.ratios))
                for x, stride in zip(maps, self.strides, strict=True)
            ]
            rows.append(torch.cat(levels))
        return torch.stack(rows).to(maps[0].device)
