"""The pixel decoder: deformable attention across the coarse feature maps, then an FPN adds the finer ones.

Shapes: B batch, C channels, S cells of all levels used in attention.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focalnet.nn.deformable import DeformableAttention
from focalnet.nn.feature_info import FeatureInfo
from focalnet.nn.feed_forward import FeedForward
from focalnet.nn.positions import sine_positions
from focalnet.ops.deformable import Shapes
from focalnet.ops.precision import without_autocast

if TYPE_CHECKING:
    from focalnet.models.mask2former.config import Mask2FormerConfig


class EncoderLayer(nn.Module):
    """Deformable self-attention over all levels, then an MLP; a norm after each."""

    def __init__(self, config: Mask2FormerConfig, levels: int) -> None:
        super().__init__()
        channels = config.channels
        self.self_attn = DeformableAttention(channels, config.heads, levels, config.points)
        self.ffn = FeedForward(channels, config.encoder_hidden, 0.0)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))

    def forward(self, x_BSC: Tensor, positions_SC: Tensor, shapes: Shapes, centers: Tensor) -> Tensor:
        x: Tensor = self.norms[0](x_BSC + self.self_attn(x_BSC + positions_SC, x_BSC, shapes, centers))
        x = self.norms[1](self.ffn(x))
        return x


class Encoder(nn.Module):
    """Holds the layers under OpenMMLab's names."""

    def __init__(self, config: Mask2FormerConfig, levels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config, levels) for _ in range(config.encoder_layers))


class PixelDecoder(nn.Module):
    """Computes the feature maps that queries attend to, and the features from which masks are predicted.

    It computes in float32, also within autocast, as the original code does.
    """

    def __init__(self, config: Mask2FormerConfig, feature_info: Sequence[FeatureInfo]) -> None:
        super().__init__()
        channels, groups = config.channels, config.norm_groups
        self.levels, self.placed = config.attended(len(feature_info)), config.placed
        fine, coarse = feature_info[: -self.levels], feature_info[-self.levels :]
        self.input_convs = nn.ModuleList(
            _conv_norm(m.channels, channels, 1, groups, bias=True) for m in reversed(coarse)
        )
        self.level_encoding = nn.Embedding(self.levels, channels)
        self.encoder = Encoder(config, self.levels)
        self.lateral_convs = nn.ModuleList(_conv_norm(m.channels, channels, 1, groups) for m in reversed(fine))
        self.output_convs = nn.ModuleList(_conv_norm(channels, channels, 3, groups) for _ in fine)
        self.mask_feature = nn.Conv2d(channels, channels, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier initialization as in the original; deformable attention has its own."""
        for name, m in self.named_modules():
            if isinstance(m, nn.Conv2d) or (isinstance(m, nn.Linear) and ".ffn." in name):
                nn.init.xavier_uniform_(m.weight)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """From feature maps ``(B, c, h, w)``, finest first, to ``(B, C, h, w)``, coarsest first, and mask features."""
        with without_autocast(features[0].device):
            features = [x.to(self.mask_feature.weight.dtype) for x in features]  # float32, unless the model is of half
            fine, coarse = features[: -self.levels], features[-self.levels :]
            levels = self._attend([conv(x) for conv, x in zip(self.input_convs, reversed(coarse), strict=True)])
            finest = levels[-1]
            for lateral, output, x in zip(self.lateral_convs, self.output_convs, reversed(fine), strict=True):
                skip = lateral(x)
                finest = output(skip + F.interpolate(finest, skip.shape[2:], mode="bilinear")).relu()
            return levels, self.mask_feature(finest)

    def _attend(self, levels: list[Tensor]) -> list[Tensor]:
        shapes = [(x.shape[2], x.shape[3]) for x in levels]
        x = torch.cat([level.flatten(2) for level in levels], 2).transpose(1, 2)
        positions = torch.cat(
            [
                sine_positions(h, w, x.shape[2], device=x.device) + encoding
                for (h, w), encoding in zip(shapes, self.level_encoding.weight, strict=True)
            ]
        ).to(x.dtype)
        if self.placed:
            x = x + positions
        centers = _centers(shapes, x.device)[None, :, None]
        for layer in self.encoder.layers:
            x = layer(x, positions, shapes, centers)
        flat = torch.split(x.transpose(1, 2), [h * w for h, w in shapes], 2)
        return [torch.unflatten(level, 2, shape) for level, shape in zip(flat, shapes, strict=True)]


def _centers(shapes: Shapes, device: torch.device) -> Tensor:
    """Centers of the cells of all levels, ``(S, 2)``, x and y in units of the image."""
    centers = []
    for height, width in shapes:
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        centers.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1))
    return torch.cat(centers)


def _conv_norm(in_channels: int, channels: int, kernel: int, groups: int, *, bias: bool = False) -> nn.Sequential:
    """Convolution and group norm under the names of OpenMMLab's checkpoints."""
    conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=bias)
    return nn.Sequential(OrderedDict(conv=conv, gn=nn.GroupNorm(groups, channels)))
