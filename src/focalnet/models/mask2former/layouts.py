"""Infers Mask2Former's configuration from a state dict of mmdet (2.x and 3.x).

The published values apply to what it does not contain: groups of the norms, points per head, which classes are things.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from focalnet.models.backbone import FocalNetConfig
from focalnet.models.base import StateDictLayout
from focalnet.models.mask2former.config import Mask2FormerConfig
from focalnet.models.openmmlab import count

# Options of the networks for COCO, by number of classes: 80 things, or 80 things and 53 stuff classes.
_COCO: dict[int, dict[str, Any]] = {80: {"segments": "instance"}, 133: {"num_things": 80}}


def _mask2former(tensors: Mapping[str, Tensor], backbone: FocalNetConfig) -> Mask2FormerConfig:
    queries, channels = tensors["panoptic_head.query_feat.weight"].shape
    classes = tensors["panoptic_head.cls_embed.weight"].shape[0] - 1
    levels = tensors["panoptic_head.level_embed.weight"].shape[0]
    encoder, decoder = "panoptic_head.pixel_decoder.encoder.layers", "panoptic_head.transformer_decoder.layers"
    attended = tensors[f"{encoder}.0.self_attn.attention_weights.bias"].shape[0]  # heads x levels x points
    return Mask2FormerConfig(
        backbone=backbone,
        num_classes=classes,
        num_queries=queries,
        channels=channels,
        heads=attended // (levels * Mask2FormerConfig.points),
        norm_groups=math.gcd(Mask2FormerConfig.norm_groups, channels),
        levels=levels,
        encoder_layers=count(tensors, rf"{re.escape(encoder)}\.\d+\.norms\.0\.weight"),
        encoder_hidden=tensors[f"{encoder}.0.ffn.layers.0.0.weight"].shape[0],
        decoder_layers=count(tensors, rf"{re.escape(decoder)}\.\d+\.norms\.0\.weight"),
        decoder_hidden=tensors[f"{decoder}.0.ffn.layers.0.0.weight"].shape[0],
        **_COCO.get(classes, {}),
    )


OPENMMLAB = StateDictLayout("panoptic_head.query_feat.weight", _mask2former, has_palette=True)
