"""Backbone, neck and head make a network, with its postprocessing. Nothing here knows a loss or a file."""

from collections import ChainMap
from collections.abc import Mapping
from typing import Any

from focalnet.models.atss import ATSS, ATSSConfig
from focalnet.models.base import DenseConfig, DenseModel, Detector, DetectorConfig, Segmenter, SegmenterConfig
from focalnet.models.classifier import Classifier, ClassifierConfig
from focalnet.models.dense_variants import DenseVariant
from focalnet.models.detectors import DETECTORS, DetectorVariant
from focalnet.models.mask2former import Mask2Former, Mask2FormerConfig
from focalnet.models.rcnn import RCNN, CascadeRCNNConfig, MaskRCNNConfig
from focalnet.models.segmenters import SEGMENTERS, SegmenterVariant
from focalnet.models.sparse_rcnn import SparseRCNN, SparseRCNNConfig
from focalnet.models.upernet import UPerNet, UPerNetConfig

__all__ = [
    "ATSS",
    "DETECTORS",
    "NETWORKS",
    "RCNN",
    "SEGMENTERS",
    "ATSSConfig",
    "CascadeRCNNConfig",
    "Classifier",
    "ClassifierConfig",
    "DenseConfig",
    "DenseModel",
    "DenseVariant",
    "Detector",
    "DetectorConfig",
    "DetectorVariant",
    "Mask2Former",
    "Mask2FormerConfig",
    "MaskRCNNConfig",
    "Segmenter",
    "SegmenterConfig",
    "SegmenterVariant",
    "SparseRCNN",
    "SparseRCNNConfig",
    "UPerNet",
    "UPerNetConfig",
]

NETWORKS: Mapping[str, DenseVariant[Any]] = ChainMap[str, DenseVariant[Any]](SEGMENTERS, DETECTORS)
"""Every named network of a dense task: detectors, then segmenters."""
