"""The encoder: the cells of all feature maps look at each other through deformable attention.

B batch, C channels, S cells of all levels, L levels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from focalnet.nn.conv import no_single_cells
from focalnet.nn.deformable import DeformableAttention
from focalnet.nn.feature_info import FeatureInfo
from focalnet.nn.feed_forward import FeedForward
from focalnet.ops.deformable import Shapes
from focalnet.samples import Size

if TYPE_CHECKING:
    from focalnet.models.dino.config import DINOConfig


@dataclass(frozen=True)
class Levels:
    """Which cells of the feature maps lie within the images.

    Args:
        shapes: height and width of each level.
        paddings: ``(B, h, w)`` of each level, true at cells beyond the image.
        ratios: ``(B, L, 2)``, share of the columns and of the rows that lie within the image.
    """

    shapes: Shapes
    paddings: list[Tensor]
    ratios: Tensor

    @property
    def padding_BS(self) -> Tensor:
        """True at cells beyond the image, all levels one after the other."""
        return torch.cat([padding.flatten(1) for padding in self.paddings], 1)

    @classmethod
    def of(cls, sizes: Sequence[Size] | Tensor, batch: Size, shapes: Shapes, device: torch.device) -> Levels:
        """Marks the padding of each level.

        Args:
            sizes: of the images before padding.
            batch: height and width after.
            shapes: height and width of each level.
            device: of the tensors.
        """
        heights, widths = torch.as_tensor(sizes, device=device).T[..., None]
        below = torch.arange(batch[0], device=device) >= heights
        right = torch.arange(batch[1], device=device) >= widths
        padding = (below[:, :, None] | right[:, None]).float()[:, None]
        return cls.of_paddings([F.interpolate(padding, shape)[:, 0].bool() for shape in shapes])

    @classmethod
    def of_paddings(cls, paddings: list[Tensor]) -> Levels:
        """The levels with these cells beyond the image."""
        ratios = [torch.stack([(~p[:, 0]).float().mean(1), (~p[..., 0]).float().mean(1)], -1) for p in paddings]
        return cls([(p.shape[1], p.shape[2]) for p in paddings], paddings, torch.stack(ratios, 1))

    def centers(self) -> Tensor:
        """Of each cell, on every level: x and y in units of the level, ``(B, S, L, 2)``.

        Beyond the image centers go on, to more than 1 where the other level is less padded.
        """
        ratios = self.ratios[:, :, None]
        centers = []
        for i, (height, width) in enumerate(self.shapes):
            y = (torch.arange(height, device=ratios.device) + 0.5) / height
            x = (torch.arange(width, device=ratios.device) + 0.5) / width
            cells = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)
            centers.append(cells / ratios[:, i])
        return torch.cat(centers, 1)[:, :, None] * self.ratios[:, None]


class Projections(nn.Module):
    """From the backbone's feature maps to levels of C channels; the coarsest are made by stride-2 convolutions.

    Parts are named as mmdet's ``ChannelMapper`` names them.
    """

    def __init__(self, config: DINOConfig, maps: Sequence[FeatureInfo]) -> None:
        super().__init__()
        extra = config.scales - len(maps)
        inputs = [maps[-1].channels, *[config.channels] * (extra - 1)] if extra else []
        self.convs = nn.ModuleList(_conv_norm(config, m.channels, 1) for m in maps)
        self.extra_convs = nn.ModuleList(_conv_norm(config, channels, 3) for channels in inputs)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """From ``(B, c, h, w)`` to ``(B, C, h, w)``, finest first."""
        levels = [conv(x) for conv, x in zip(self.convs, maps, strict=True)]
        x = maps[-1]
        for conv in self.extra_convs:
            x = conv(no_single_cells(x))
            levels.append(x)
        return levels


class EncoderLayer(nn.Module):
    """Deformable self-attention over all levels, then an MLP; a norm after each."""

    def __init__(self, config: DINOConfig) -> None:
        super().__init__()
        channels = config.channels
        self.self_attn = DeformableAttention(channels, config.heads, config.scales, config.points)
        self.dropout = nn.Dropout(config.dropout)
        self.ffn = FeedForward(channels, config.feedforward_channels, config.dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))

    def forward(self, x_BSC: Tensor, positions: Tensor, shapes: Shapes, centers: Tensor, padding_BS: Tensor) -> Tensor:
        seen = self.self_attn(x_BSC + positions, x_BSC, shapes, centers, padding_BS)
        x: Tensor = self.norms[0](x_BSC + self.dropout(seen))
        x = self.norms[1](self.ffn(x))
        return x


class Encoder(nn.Module):
    """The layers, under mmdet's names."""

    def __init__(self, config: DINOConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.grad_checkpointing = False

    def forward(self, x_BSC: Tensor, positions_BSC: Tensor, levels: Levels) -> Tensor:
        """The memory, ``(B, S, C)``.

        Args:
            x_BSC: the cells of all levels.
            positions_BSC: of the cells, with what tells the levels apart.
            levels: where images are padded.
        """
        centers, padding = levels.centers(), levels.padding_BS
        recompute = self.grad_checkpointing and self.training and torch.is_grad_enabled()
        for layer in self.layers:
            inputs = (x_BSC, positions_BSC, levels.shapes, centers, padding)
            x_BSC = checkpoint(layer, *inputs, use_reentrant=False) if recompute else layer(*inputs)
        return x_BSC


def _conv_norm(config: DINOConfig, in_channels: int, kernel: int) -> nn.Sequential:
    stride = 1 if kernel == 1 else 2
    conv = nn.Conv2d(in_channels, config.channels, kernel, stride, kernel // 2, bias=config.projection_bias)
    nn.init.xavier_uniform_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return nn.Sequential(OrderedDict(conv=conv, gn=nn.GroupNorm(config.norm_groups, config.channels)))
