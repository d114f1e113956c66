"""Feature pyramid network (Lin et al., CVPR 2017, arXiv 1612.03144)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from focalnet.errors import ConfigError
from focalnet.nn.conv import ConvNorm
from focalnet.nn.feature_info import FeatureInfo


@dataclass(frozen=True, kw_only=True)
class FPNConfig:
    """Configuration of a feature pyramid.

    Args:
        channels: channels of every level.
        levels: number of levels; those beyond the backbone's feature maps are computed from the coarsest output.
        extra: how extra levels are computed: ``"pool"`` takes every other cell, ``"conv"`` is a 3x3 convolution of
            stride 2.

    Raises:
        ConfigError: a value is invalid.
    """

    channels: int = 256
    levels: int = 5
    extra: Literal["pool", "conv"] = "pool"

    def __post_init__(self) -> None:
        for name in ("channels", "levels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} of the pyramid must be at least 1")
        if self.extra not in ("pool", "conv"):
            raise ConfigError(f'extra="{self.extra}" of the pyramid must be "pool" or "conv"')

    def build(self, feature_info: Sequence[FeatureInfo]) -> FPN:
        """Builds the pyramid on a backbone's ``feature_info``, with random weights."""
        return FPN(self, feature_info)


class FPN(nn.Module):
    """Merges a backbone's feature maps from coarse to fine; all outputs have the same number of channels.

    A 1x1 convolution on each feature map, nearest-neighbor upsampling and addition from coarse to fine, then a
    3x3 convolution on each sum; no norm, no activation. Parameters are named as in OpenMMLab's checkpoints.
    """

    def __init__(self, config: FPNConfig, feature_info: Sequence[FeatureInfo]) -> None:
        super().__init__()
        if config.levels < len(feature_info):
            raise ConfigError(
                f"a pyramid of levels={config.levels} cannot take the backbone's {len(feature_info)} feature maps"
            )
        self.config = config
        channels, extra = config.channels, config.levels - len(feature_info)
        self.lateral_convs = nn.ModuleList(ConvNorm(m.channels, channels, 1, relu=False) for m in feature_info)
        self.fpn_convs = nn.ModuleList(ConvNorm(channels, channels, 3, relu=False) for _ in feature_info)
        for _ in range(extra if config.extra == "conv" else 0):
            self.fpn_convs.append(ConvNorm(channels, channels, 3, stride=2, relu=False))
        strides = [m.stride for m in feature_info] + [feature_info[-1].stride * 2**i for i in range(1, extra + 1)]
        self.feature_info = tuple(FeatureInfo(f"s{stride}", channels, stride) for stride in strides)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.xavier_uniform_(m.weight)
                nn.init.zeros_(m.bias)  # type: ignore[arg-type]  # a ConvNorm without norm has one

    def forward(self, features: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns the levels under the names in ``feature_info``, finest first."""
        sums = [lateral(x) for lateral, x in zip(self.lateral_convs, features.values(), strict=True)]
        for i in range(len(sums) - 1, 0, -1):
            sums[i - 1] = sums[i - 1] + F.interpolate(sums[i], size=sums[i - 1].shape[2:], mode="nearest")
        outputs = [conv(x) for conv, x in zip(self.fpn_convs, sums, strict=False)]
        while len(outputs) < self.config.levels:
            last = outputs[-1]
            outputs.append(last[:, :, ::2, ::2] if self.config.extra == "pool" else self.fpn_convs[len(outputs)](last))
        return {info.name: x for info, x in zip(self.feature_info, outputs, strict=True)}
