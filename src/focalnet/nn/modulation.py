"""Focal modulation (Yang et al., NeurIPS 2022, arXiv 2203.11926, section 3)."""

from __future__ import annotations

import functools
from typing import cast

import torch
from torch import nn

from focalnet.errors import ConfigError


class FocalModulation(nn.Module):
    """Replaces self-attention: ``y = proj(q(x) * h(sum_l gate_l(x) * z_l))``.

    The submodules have the names of the paper and of its checkpoints:

    * ``f``: one linear layer for query, context and gates; rows ``[query C, context C, gates L, global gate 1]``
    * ``focal_layers``: the depthwise convolution and GELU of each level, kernel ``window + 2 * level``
    * ``h``: the projection that turns the aggregated context into the modulator
    * ``ln``: only with ``post_norm``, on the modulated query
    * ``proj``: the output projection

    Args:
        dim: channels C.
        levels: focal levels L, >= 0 (0: global context only, as in the paper's Table 14).
        window: kernel size of the first level, odd; unused without levels.
        post_norm: layer norm on the modulated query (huge models).
        normalize: divide the aggregated context by L + 1 (large fl4 models of the official release).
        drop: dropout rate after ``proj``.
    """

    def __init__(
        self,
        dim: int,
        levels: int,
        window: int,
        *,
        post_norm: bool = False,
        normalize: bool = False,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        if levels < 0 or (levels > 0 and (window < 1 or window % 2 == 0)):
            raise ConfigError(
                f"focal modulation needs levels >= 0 and an odd window >= 1, got levels={levels}, window={window}"
            )
        self.dim, self.levels, self.normalize = dim, levels, normalize
        self.f = nn.Linear(dim, 2 * dim + levels + 1)
        self.focal_layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, dim, k, padding=k // 2, groups=dim, bias=False), nn.GELU())
            for k in range(window, window + 2 * levels, 2)
        )
        self.act = nn.GELU()  # of the global level
        self.h = nn.Conv2d(dim, dim, 1)
        self.ln = nn.LayerNorm(dim) if post_norm else None
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)

    @property
    def convs(self) -> list[nn.Conv2d]:
        """The depthwise convolution of each level."""
        return [cast(nn.Conv2d, layer.get_submodule("0")) for layer in self.focal_layers]

    def forward(self, x_BHWC: torch.Tensor) -> torch.Tensor:
        """Returns ``(B, H, W, C)``."""
        query, z, gates = self.f(x_BHWC).split((self.dim, self.dim, self.levels + 1), dim=-1)
        contexts = []
        for level, layer in enumerate(self.focal_layers):
            z = layer(z.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # equation 4: hierarchical contextualization
            contexts.append(z * gates[..., level : level + 1])
        global_context = self.act(z.mean((1, 2), keepdim=True))  # global average of the last level
        contexts.append(global_context * gates[..., self.levels :])
        aggregated = functools.reduce(torch.add, contexts)  # equation 5: gated aggregation
        if self.normalize:
            aggregated = aggregated / (self.levels + 1)
        modulator = self.h(aggregated.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        modulated = query * modulator  # equation 6: the modulator multiplies the query
        if self.ln is not None:
            modulated = self.ln(modulated)
        out: torch.Tensor = self.proj_drop(self.proj(modulated))
        return out
