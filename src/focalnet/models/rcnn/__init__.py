"""Faster, Mask and Cascade R-CNN."""

from focalnet.models.rcnn.config import (
    CascadeRCNNConfig,
    MaskRCNNConfig,
    RCNNConfig,
    RPNConfig,
    SamplingConfig,
    StageConfig,
)
from focalnet.models.rcnn.network import RCNN, RCNNOutputs, RCNNTrainingOutputs

__all__ = [
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
