"""Faster, Mask and Cascade R-CNN as in section 4.2 and the appendix of arXiv 2203.11926."""

from typing import Any

from focalnet.card import Preprocessing
from focalnet.models.base import ModelFamily
from focalnet.models.rcnn.config import (
    CascadeRCNNConfig,
    MaskRCNNConfig,
    RCNNConfig,
    RPNConfig,
    SamplingConfig,
    StageConfig,
)
from focalnet.models.rcnn.layouts import CASCADE_OPENMMLAB, OPENMMLAB
from focalnet.models.rcnn.network import RCNN, RCNNOutputs, RCNNTrainingOutputs
from focalnet.models.variants import dense_shape, dense_variants

__all__ = [
    "FAMILIES",
    "RCNN",
    "CascadeRCNNConfig",
    "MaskRCNNConfig",
    "RCNNConfig",
    "RCNNOutputs",
    "RCNNTrainingOutputs",
    "RPNConfig",
    "SamplingConfig",
    "StageConfig",
]


_PREPROCESSING = Preprocessing(image_size=800, max_size=1333, crop_pct=1.0, interpolation="bilinear")


def _cascade_shape(backbone: str) -> dict[str, Any]:
    """Focal windows 11, 9, 9, 7 by stage (``detection/configs`` of the release); Mask R-CNN has 9 in all stages."""
    return dense_shape(backbone, four_windows=(11, 9, 9, 7))


FAMILIES = (
    ModelFamily(
        name="mask_rcnn",
        file_kind="mask_rcnn",
        tasks=("detection",),
        config=MaskRCNNConfig,
        variants=dense_variants("mask_rcnn", dense_shape),
        preprocessing=_PREPROCESSING,
        labels="coco",
        layout=OPENMMLAB,
    ),
    ModelFamily(
        name="cascade_mask_rcnn",
        file_kind="cascade_rcnn",
        tasks=("detection",),
        config=CascadeRCNNConfig,
        variants=dense_variants("cascade_mask_rcnn", _cascade_shape),
        preprocessing=_PREPROCESSING,
        labels="coco",
        layout=CASCADE_OPENMMLAB,
    ),
)
