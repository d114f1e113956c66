"""A FocalNet block: modulation and MLP, each on a residual branch."""

from __future__ import annotations

import torch
from torch import nn

from focalnet.nn.mlp import Mlp
from focalnet.nn.modulation import FocalModulation


class DropPath(nn.Module):
    """Stochastic depth: in training, drops a sample's whole residual branch with probability ``rate``."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1.0 - self.rate)
        return x * keep.div_(1.0 - self.rate) if self.rate < 1.0 else x * keep

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class FocalNetBlock(nn.Module):
    """``x + gamma_1 * modulation(norm1(x))``, then ``x + gamma_2 * mlp(norm2(x))``.

    With ``post_norm`` the norms come after modulation and MLP, before the residual sum. Both branches use
    the same drop-path rate. ``gamma_1`` and ``gamma_2`` exist only with ``layer_scale``.
    """

    def __init__(
        self,
        dim: int,
        modulation: FocalModulation,
        *,
        mlp_ratio: float,
        drop: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        post_norm: bool = False,
    ) -> None:
        super().__init__()
        self.post_norm = post_norm
        self.norm1 = nn.LayerNorm(dim)
        self.modulation = modulation
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)
        self.drop_path = DropPath(drop_path)
        scales = (None, None) if layer_scale is None else (torch.full((dim,), layer_scale) for _ in range(2))
        self.gamma_1, self.gamma_2 = (None if s is None else nn.Parameter(s) for s in scales)

    def forward(self, x_BHWC: torch.Tensor) -> torch.Tensor:
        x = x_BHWC
        y = self.norm1(self.modulation(x)) if self.post_norm else self.modulation(self.norm1(x))
        x = x + self.drop_path(y if self.gamma_1 is None else self.gamma_1 * y)
        y = self.norm2(self.mlp(x)) if self.post_norm else self.mlp(self.norm2(x))
        out: torch.Tensor = x + self.drop_path(y if self.gamma_2 is None else self.gamma_2 * y)
        return out
