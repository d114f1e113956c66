"""The backbone, and one package per published network: configuration, network, loss, state-dict layouts.

Each package defines ``FAMILIES``, which ``focalnet.registry`` collects. A new network needs no change elsewhere. The
names below are imported when first used, because detectors need packages that a classifier does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from focalnet import lazy

_WHERE = {
    "ATSS": "atss",
    "DINO": "dino",
    "RCNN": "rcnn",
    "ATSSConfig": "atss",
    "CascadeRCNNConfig": "rcnn",
    "Classifier": "classifier",
    "ClassifierConfig": "classifier",
    "DINOConfig": "dino",
    "FocalNet": "backbone",
    "FocalNetBase": "backbone",
    "FocalNetConfig": "backbone",
    "Mask2Former": "mask2former",
    "Mask2FormerConfig": "mask2former",
    "MaskRCNNConfig": "rcnn",
    "Model": "base",
    "ModelConfig": "base",
    "ModelFamily": "base",
    "ScoresPixels": "base",
    "SparseRCNN": "sparse_rcnn",
    "SparseRCNNConfig": "sparse_rcnn",
    "StateDictLayout": "base",
    "TrainingStep": "base",
    "UPerNet": "upernet",
    "UPerNetConfig": "upernet",
}
__all__ = list(_WHERE)

if TYPE_CHECKING:
    from focalnet.models.atss import ATSS as ATSS
    from focalnet.models.atss import ATSSConfig as ATSSConfig
    from focalnet.models.backbone import FocalNet as FocalNet
    from focalnet.models.backbone import FocalNetBase as FocalNetBase
    from focalnet.models.backbone import FocalNetConfig as FocalNetConfig
    from focalnet.models.base import Model as Model
    from focalnet.models.base import ModelConfig as ModelConfig
    from focalnet.models.base import ModelFamily as ModelFamily
    from focalnet.models.base import ScoresPixels as ScoresPixels
    from focalnet.models.base import StateDictLayout as StateDictLayout
    from focalnet.models.base import TrainingStep as TrainingStep
    from focalnet.models.classifier import Classifier as Classifier
    from focalnet.models.classifier import ClassifierConfig as ClassifierConfig
    from focalnet.models.dino import DINO as DINO
    from focalnet.models.dino import DINOConfig as DINOConfig
    from focalnet.models.mask2former import Mask2Former as Mask2Former
    from focalnet.models.mask2former import Mask2FormerConfig as Mask2FormerConfig
    from focalnet.models.rcnn import RCNN as RCNN
    from focalnet.models.rcnn import CascadeRCNNConfig as CascadeRCNNConfig
    from focalnet.models.rcnn import MaskRCNNConfig as MaskRCNNConfig
    from focalnet.models.sparse_rcnn import SparseRCNN as SparseRCNN
    from focalnet.models.sparse_rcnn import SparseRCNNConfig as SparseRCNNConfig
    from focalnet.models.upernet import UPerNet as UPerNet
    from focalnet.models.upernet import UPerNetConfig as UPerNetConfig

__getattr__ = lazy.attributes(__name__, _WHERE)
