"""Infers the configuration of Faster, Mask and Cascade R-CNN from mmdet state dicts.

Thresholds, losses and numbers of sampled boxes are not in a state dict: the published ones apply.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from focalnet.models.backbone import FocalNetConfig
from focalnet.models.base import StateDictLayout
from focalnet.models.openmmlab import count, neck_of
from focalnet.models.rcnn.config import CascadeRCNNConfig, MaskRCNNConfig, StageConfig


def _rcnn(tensors: Mapping[str, Tensor], backbone: FocalNetConfig) -> MaskRCNNConfig | CascadeRCNNConfig:
    cascade = "roi_head.bbox_head.0.fc_reg.weight" in tensors
    first = "roi_head.bbox_head.0" if cascade else "roi_head.bbox_head"
    classes = tensors[f"{first}.fc_cls.weight"].shape[0] - 1
    config = (CascadeRCNNConfig if cascade else MaskRCNNConfig)(backbone=backbone, num_classes=classes)
    head = _box_head(tensors, first, classes)
    if cascade and not head["convs"]:  # heads of two linear layers are from mmdet's base file, so its losses apply
        head |= {"box_loss": "smooth_l1", "smooth_l1_beta": 1.0, "box_loss_weight": 1.0}
    masks = "roi_head.mask_head.0" if cascade else "roi_head.mask_head"
    mask_convs = count(tensors, rf"{re.escape(masks)}\.convs\.\d+\.conv\.weight")
    return replace(
        config,
        neck=neck_of(tensors, config.neck),
        stages=tuple(replace(stage, **head) for stage in config.stages),
        masks=f"{masks}.conv_logits.weight" in tensors,
        mask_convs=mask_convs or config.mask_convs,
        mask_channels=tensors[f"{masks}.convs.0.conv.weight"].shape[0] if mask_convs else config.mask_channels,
    )


def _box_head(tensors: Mapping[str, Tensor], prefix: str, classes: int) -> dict[str, Any]:
    convs = count(tensors, rf"{re.escape(prefix)}\.shared_convs\.\d+\.conv\.weight")
    channels = tensors[f"{prefix}.shared_convs.0.conv.weight"].shape[0] if convs else StageConfig.conv_channels
    return {
        "convs": convs,
        "conv_channels": channels,
        "fcs": count(tensors, rf"{re.escape(prefix)}\.shared_fcs\.\d+\.weight"),
        "fc_channels": tensors[f"{prefix}.fc_cls.weight"].shape[1],
        "class_agnostic": tensors[f"{prefix}.fc_reg.weight"].shape[0] == 4 != 4 * classes,
    }


OPENMMLAB = StateDictLayout("roi_head.bbox_head.fc_reg.weight", _rcnn)
CASCADE_OPENMMLAB = StateDictLayout("roi_head.bbox_head.0.shared_fcs.0.weight", _rcnn)
