"""Deformable attention as a layer (Zhu et al., ICLR 2021): each query decides where to look."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from focalnet.ops.deformable import Shapes, multi_scale_deformable_attention


class DeformableAttention(nn.Module):
    """Looks at a few points of every level around a reference; in float32 at least.

    Args:
        channels: of queries and values; a multiple of ``heads``.
        heads: that look separately.
        levels: maps to look at.
        points: of each head on each level.
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
        """At first the heads look in as many directions, their points 1, 2, ... cells away, all trusted alike."""
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.arange(1, self.points + 1)[:, None]
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
            queries_BQC: with their positions added.
            values_BSC: the cells of all levels, one level after the other, row by row.
            shapes: height and width of each level.
            references: ``(B, Q, levels, 2)``, x and y in units of the level, from which offsets count in cells; or
                ``(B, Q, levels, 4)``, boxes (center and size), whose offsets count in shares of half their size.
                Sizes of 1 are repeated.
            padding_BS: true at cells whose values are zero; None for none.
        """
        grid = (*queries_BQC.shape[:2], self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(queries_BQC).view(*grid, 2)
        center, *size = torch.split(references[:, :, None, :, None], 2, -1)
        if size:
            locations = center + offsets / self.points * size[0] * 0.5
        else:
            locations = center + offsets / offsets.new_tensor([(w, h) for h, w in shapes])[:, None]
        weights = self.attention_weights(queries_BQC).view(*grid[:3], -1).softmax(-1).view(grid)
        values: Tensor = self.value_proj(values_BSC)
        if padding_BS is not None:
            values = values.masked_fill(padding_BS[..., None], 0.0)
        values = torch.unflatten(values, -1, (self.heads, -1))
        seen = multi_scale_deformable_attention(values, shapes, locations, weights)
        out: Tensor = self.output_proj(seen.to(self.output_proj.weight.dtype))
        return out
