"""Bilinear resizing as matrix products, whose sizes may differ between the images of a batch and be known only later.

Exported networks use it, where ``F.interpolate`` needs one size for the whole batch. Shapes: B batch, N channels, h and
w of the input, H and W of the output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_CHANNELS = 16  # resized at once: of 150 classes at the size of a photograph all would take gigabytes


def resize_matrices(source: Tensor, target: Tensor, length: int, cells: int) -> Tensor:
    """Matrices ``(B, length, cells)`` that resize the first ``source`` cells of a row to ``target``.

    Rows beyond the target repeat its last cell.

    Args:
        source: ``(B,)``, numbers of cells.
        target: ``(B,)``, numbers of cells after resizing.
        length: of the rows after resizing, at least the largest target.
        cells: of the rows before, at least the largest source.
    """
    source, target = source.float()[:, None], target.float()[:, None]
    index = torch.arange(length, device=source.device, dtype=torch.float32)
    place = ((index + 0.5) * (source / target) - 0.5).clamp(min=0).minimum(source - 1)  # pixel centers are aligned
    cell = torch.arange(cells, device=source.device, dtype=torch.float32)
    return (1 - (place[..., None] - cell).abs()).clamp(min=0)


class OriginalSize:
    """Resizes feature maps of a padded batch to the original sizes of its images, all on one canvas.

    Args:
        sizes_B2: height and width of each image before padding, int64.
        original_sizes_B2: height and width before it was resized, int64; the canvas has the largest of both.
        padded: height and width of the batch.
    """

    def __init__(self, sizes_B2: Tensor, original_sizes_B2: Tensor, padded: tuple[int, int]) -> None:
        sides: tuple[Any, ...] = original_sizes_B2.amax(0).unbind()
        height, width = (side.item() for side in sides)  # int() could not be traced
        for side in (height, width):
            torch._check(side >= 1)
        self.sizes, self.originals = sizes_B2, original_sizes_B2
        self.canvas, self.padded = (height, width), padded

    def inside(self) -> Tensor:
        """Pixels of the canvas that belong to each image, ``(B, H, W)``, bool."""
        rows, columns = (
            torch.arange(side, device=self.originals.device) < self.originals[:, axis : axis + 1]
            for axis, side in enumerate(self.canvas)
        )
        return rows[:, :, None] & columns[:, None]

    def matrices(self, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Matrices ``(B, H, h)`` and ``(B, W, w)`` for feature maps of this shape over the padded batch.

        They resize to the padded batch, cut the padding off, and resize to the original size.
        """
        pair = []
        for axis in (0, 1):
            to_original = resize_matrices(
                self.sizes[:, axis], self.originals[:, axis], self.canvas[axis], self.padded[axis]
            )
            cells, side = (self.sizes.new_full((1,), n) for n in (shape[axis], self.padded[axis]))
            pair.append(to_original @ resize_matrices(cells, side, self.padded[axis], shape[axis]))
        return pair[0], pair[1]

    def resize(self, maps_BNhw: Tensor, matrices: tuple[Tensor, Tensor]) -> Tensor:
        """Feature maps ``(B, N, H, W)`` at the original size."""
        rows, columns = matrices
        return rows[:, None] @ maps_BNhw @ columns[:, None].transpose(-1, -2)

    def label_maps(self, scores_BNhw: Tensor) -> Tensor:
        """The class with the highest score at each pixel, ``(B, H, W)``, int64; few classes are resized at once."""
        matrices = self.matrices((scores_BNhw.shape[2], scores_BNhw.shape[3]))
        best, labels = None, None
        for start in range(0, scores_BNhw.shape[1], _CHANNELS):
            score, label = self.resize(scores_BNhw[:, start : start + _CHANNELS], matrices).max(1)
            if best is None or labels is None:
                best, labels = score, label
            else:
                higher = score > best
                best, labels = torch.where(higher, score, best), torch.where(higher, label + start, labels)
        assert labels is not None
        return labels
