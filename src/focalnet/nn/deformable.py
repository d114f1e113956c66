"""Deformable attention as a layer (Zhu et al., ICLR 2021): each query predicts its sampling points."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from focalnet.ops.deformable import Shapes, extents, multi_scale_deformable_attention


class DeformableAttention(nn.Module):
    """Attends to a few points around a reference in every level; computes in float32 or higher.

    Args:
        channels: channels of queries and values; a multiple of ``heads``.
        heads: number of attention heads.
        levels: number of feature maps.
        points: sampling points per head and level.
    """

    def __init__(self, channels: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(channels, heads * levels * points * 2)
        self.attention_weights = nn.Linear(channels, heads * levels * points)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initially each head has its own direction, with points 1, 2, ... cells away and equal weights."""
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        # On the CPU, since PyTorch imports its compiler to compute on the meta device.
        angle = torch.arange(self.heads, device="cpu") * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.arange(1, self.points + 1, device="cpu")[:, None]
        offsets = (direction[:, None, None] * distance).expand(-1, self.levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        queries_BQC: Tensor,
        values_BSC: Tensor,
        shapes: Shapes,
        references: Tensor,
        padding_BS: Tensor | None = None,
    ) -> Tensor:
        """Returns ``(B, Q, C)``.

        Args:
            queries_BQC: queries, with their position encodings added.
            values_BSC: values at the cells of all levels, concatenated, each level row by row.
            shapes: height and width of each level.
            references: reference points ``(B, Q, levels, 2)``, x and y relative to the level's size, with offsets in
                cells; or boxes ``(B, Q, levels, 4)``, center and size, with offsets relative to half the box size.
                Axes of size 1 are broadcast.
            padding_BS: true at cells to be treated as zero; None for none.
        """
        grid = (*queries_BQC.shape[:2], self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(queries_BQC).view(*grid, 2)
        center, *size = torch.split(references[:, :, None, :, None], 2, -1)
        if size:
            locations = center + offsets / self.points * size[0] * 0.5
        else:
            locations = center + offsets / extents(shapes, offsets)[:, None]
        weights = self.attention_weights(queries_BQC).view(*grid[:3], -1).softmax(-1).view(grid)
        values: Tensor = self.value_proj(values_BSC)
        if padding_BS is not None:
            values = values.masked_fill(padding_BS[..., None], 0.0)
        values = torch.unflatten(values, -1, (self.heads, -1))
        attended = self._sample(values, shapes, locations, weights)
        out: Tensor = self.output_proj(attended.to(self.output_proj.weight.dtype))
        return out

    def _sample(self, values: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        return multi_scale_deformable_attention(values, shapes, locations, weights)
