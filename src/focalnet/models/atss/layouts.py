"""Infers ATSS's configuration from an mmdet state dict, which omits thresholds and losses: the published ones apply."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from focalnet.models.atss.config import ATSSConfig
from focalnet.models.backbone import FocalNetConfig
from focalnet.models.base import StateDictLayout
from focalnet.models.openmmlab import count, neck_of


def _atss(tensors: Mapping[str, Tensor], backbone: FocalNetConfig) -> ATSSConfig:
    return ATSSConfig(
        backbone=backbone,
        neck=neck_of(tensors, ATSSConfig.neck),
        num_classes=tensors["bbox_head.atss_cls.weight"].shape[0],
        convs=count(tensors, r"bbox_head\.cls_convs\.\d+\.conv\.weight"),
        channels=tensors["bbox_head.atss_cls.weight"].shape[1],
    )


OPENMMLAB = StateDictLayout("bbox_head.atss_reg.weight", _atss)
