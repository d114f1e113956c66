"""The backbone, and one package per published network: configuration, network, loss, state-dict layouts.

Each package defines ``FAMILIES``, which ``focalnet.registry`` collects. A new network needs no change elsewhere.
"""

from focalnet.models.atss import ATSS, ATSSConfig
from focalnet.models.backbone import FocalNet, FocalNetBase, FocalNetConfig
from focalnet.models.base import Model, ModelConfig, ModelFamily, ScoresPixels, StateDictLayout, TrainingStep
from focalnet.models.classifier import Classifier, ClassifierConfig
from focalnet.models.dino import DINO, DINOConfig
from focalnet.models.mask2former import Mask2Former, Mask2FormerConfig
from focalnet.models.rcnn import RCNN, CascadeRCNNConfig, MaskRCNNConfig
from focalnet.models.sparse_rcnn import SparseRCNN, SparseRCNNConfig
from focalnet.models.upernet import UPerNet, UPerNetConfig

__all__ = [
    "ATSS",
    "DINO",
    "RCNN",
    "ATSSConfig",
    "CascadeRCNNConfig",
    "Classifier",
    "ClassifierConfig",
    "DINOConfig",
    "FocalNet",
    "FocalNetBase",
    "FocalNetConfig",
    "Mask2Former",
    "Mask2FormerConfig",
    "MaskRCNNConfig",
    "Model",
    "ModelConfig",
    "ModelFamily",
    "ScoresPixels",
    "SparseRCNN",
    "SparseRCNNConfig",
    "StateDictLayout",
    "TrainingStep",
    "UPerNet",
    "UPerNetConfig",
]
