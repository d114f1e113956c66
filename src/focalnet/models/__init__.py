"""Backbone, neck and head make a network, with its postprocessing. Nothing here knows a loss or a file."""

from focalnet.models.atss import ATSS, ATSSConfig
from focalnet.models.base import Detector, DetectorConfig
from focalnet.models.classifier import Classifier, ClassifierConfig
from focalnet.models.detectors import DETECTORS, DetectorVariant
from focalnet.models.rcnn import RCNN, CascadeRCNNConfig, MaskRCNNConfig
from focalnet.models.sparse_rcnn import SparseRCNN, SparseRCNNConfig

__all__ = [
    "ATSS",
    "DETECTORS",
    "RCNN",
    "ATSSConfig",
    "CascadeRCNNConfig",
    "Classifier",
    "ClassifierConfig",
    "Detector",
    "DetectorConfig",
    "DetectorVariant",
    "MaskRCNNConfig",
    "SparseRCNN",
    "SparseRCNNConfig",
]
