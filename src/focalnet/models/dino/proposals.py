"""Two-stage proposals: every cell of the encoder's memory proposes a box of the size of its level.

B batch, C channels, S cells of all levels. Boxes are center x and y, width and height in units of the image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from focalnet.models.dino.encoder import Levels

_SIDE = 0.05  # of the finest level's proposals; it doubles with every level
_MARGIN = 0.01  # proposals nearer to the edge than this, or larger than this allows, are left out


def proposals(memory_BSC: Tensor, levels: Levels) -> tuple[Tensor, Tensor]:
    """The logits of the proposals, ``(B, S, 4)``, and the memory, both without the cells that are left out.

    Cells beyond the image, or whose box is not within 0.01 and 0.99, have infinite logits and a memory of zeros.
    """
    boxes = []
    for i, padding in enumerate(levels.paddings):
        height, width = padding.shape[1:]
        inside = torch.stack([(~padding[:, 0]).sum(1), (~padding[:, :, 0]).sum(1)], -1)[:, None]  # columns, rows
        x, y = (torch.arange(n, device=padding.device) + 0.5 for n in (width, height))
        cells = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)
        centers = cells / inside
        boxes.append(torch.cat([centers, torch.full_like(centers, _SIDE * 2**i)], -1))
    box = torch.cat(boxes, 1)
    valid = ((box > _MARGIN) & (box < 1 - _MARGIN)).all(-1, keepdim=True) & ~levels.padding_BS[..., None]
    logits = (box / (1 - box)).log().masked_fill(~valid, torch.inf)
    return logits, memory_BSC.masked_fill(~valid, 0.0)


def best(scores_BSN: Tensor, count: int) -> Tensor:
    """Indices ``(B, Q)`` of the cells with the highest score of any class, best first; Q is at most ``count``."""
    return scores_BSN.amax(-1).topk(min(count, scores_BSN.shape[1]), 1).indices


def gather(values_BSC: Tensor, indices_BQ: Tensor) -> Tensor:
    """The values of the chosen cells, ``(B, Q, C)``."""
    return values_BSC.gather(1, indices_BQ[..., None].expand(-1, -1, values_BSC.shape[2]))
