"""The MLP of a FocalNet block."""

from __future__ import annotations

import torch
from torch import nn


class Mlp(nn.Module):
    """Two linear layers with GELU (exact) between; dropout after each."""

    def __init__(self, dim: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x_BHWC: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.drop(self.fc2(self.drop(self.act(self.fc1(x_BHWC)))))
        return out
