"""Infers Sparse R-CNN's configuration from an mmdet state dict."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from focalnet.models.backbone import FocalNetConfig
from focalnet.models.base import StateDictLayout
from focalnet.models.openmmlab import count, neck_of
from focalnet.models.sparse_rcnn.config import SparseRCNNConfig


def _sparse_rcnn(tensors: Mapping[str, Tensor], backbone: FocalNetConfig) -> SparseRCNNConfig:
    proposals, channels = tensors["rpn_head.init_proposal_features.weight"].shape
    first = "roi_head.bbox_head.0"
    return SparseRCNNConfig(
        backbone=backbone,
        neck=neck_of(tensors, SparseRCNNConfig.neck),
        num_classes=tensors[f"{first}.fc_cls.weight"].shape[0],
        max_per_image=proposals,
        proposals=proposals,
        stages=count(tensors, r"roi_head\.bbox_head\.\d+\.fc_cls\.weight"),
        feedforward_channels=tensors[f"{first}.ffn.layers.0.0.weight"].shape[0],
        dynamic_channels=tensors[f"{first}.instance_interactive_conv.dynamic_layer.weight"].shape[0] // (2 * channels),
        class_layers=count(tensors, r"roi_head\.bbox_head\.0\.cls_fcs\.\d+\.bias"),  # only the norms have a bias
        box_layers=count(tensors, r"roi_head\.bbox_head\.0\.reg_fcs\.\d+\.bias"),
    )


OPENMMLAB = StateDictLayout("roi_head.bbox_head.0.instance_interactive_conv.dynamic_layer.weight", _sparse_rcnn)
