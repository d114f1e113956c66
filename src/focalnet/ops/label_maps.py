"""Converts class scores to a label map at any size, without holding all scores at that size in memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BAND = 2**24  # number of scores held at once: 64 MiB of float32


def label_map(scores_NHW: Tensor, size: tuple[int, int]) -> Tensor:
    """The class with the highest bilinearly resized score at each pixel, ``(height, width)``, int64.

    Equal to ``F.interpolate(scores, size, mode="bilinear").argmax(0)`` up to rounding. A photograph of 12 megapixels
    with 150 classes has 7 GB of scores, so they are computed for one band of rows at a time.

    Args:
        scores_NHW: scores of N classes.
        size: height and width of the label map.
    """
    if scores_NHW.shape[1:] == size:
        return scores_NHW.argmax(0)
    height, width = size
    labels = torch.empty(size, dtype=torch.int64, device=scores_NHW.device)
    rows = max(BAND // (len(scores_NHW) * width), 1)
    for top in range(0, height, rows):
        band = _resized_rows(scores_NHW, top, min(top + rows, height), size)
        torch.argmax(band, 0, out=labels[top : top + rows])
    return labels


def _resized_rows(scores_NHW: Tensor, top: int, bottom: int, size: tuple[int, int]) -> Tensor:
    """Rows from ``top`` to ``bottom`` of the resized scores, ``(N, bottom - top, width)``, float32."""
    source_height = scores_NHW.shape[1]
    row = torch.arange(top, bottom, device=scores_NHW.device)
    y = ((row + 0.5) * (source_height / size[0]) - 0.5).clamp(min=0)  # pixel centers, as with align_corners=False
    above = y.long().clamp(max=source_height - 1)
    below = (above + 1).clamp(max=source_height - 1)
    share = (y - above)[:, None]
    band = torch.lerp(scores_NHW[:, above].float(), scores_NHW[:, below].float(), share)
    return F.interpolate(band[None], (bottom - top, size[1]), mode="bilinear")[0]
