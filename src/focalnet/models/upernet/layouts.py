"""Infers UPerNet's configuration from a state dict of mmseg (0.x and 1.x)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from focalnet.models.backbone import FocalNetConfig
from focalnet.models.base import StateDictLayout
from focalnet.models.upernet.config import UPerNetConfig


def _upernet(tensors: Mapping[str, Tensor], backbone: FocalNetConfig) -> UPerNetConfig:
    classes, channels = tensors["decode_head.conv_seg.weight"].shape[:2]
    channels_of_maps = [backbone.channels[i] for i in backbone.out_indices or range(len(backbone.depths))]
    auxiliary_channels, auxiliary_input = tensors["auxiliary_head.convs.0.conv.weight"].shape[:2]
    return UPerNetConfig(
        backbone=backbone,
        num_classes=classes,
        channels=channels,
        auxiliary_channels=auxiliary_channels,
        auxiliary_index=channels_of_maps.index(auxiliary_input) - len(channels_of_maps),
    )


OPENMMLAB = StateDictLayout("decode_head.fpn_bottleneck.conv.weight", _upernet, has_palette=True)
