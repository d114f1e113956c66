"""From files to batches. Names are imported when first used: reading a picture must not need Lightning."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_WHERE = {
    "Augmentation": "transforms",
    "ClassificationData": "classification",
    "DetectionAugmentation": "detection_transforms",
    "DetectionData": "detection",
    "PanopticAugmentation": "panoptic_transforms",
    "PanopticData": "panoptic",
    "SemanticAugmentation": "semantic_transforms",
    "SemanticData": "semantic",
    "eval_transform": "preprocess",
    "find": "images",
    "read": "images",
}
__all__ = list(_WHERE)

if TYPE_CHECKING:
    from focalnet.data.classification import ClassificationData as ClassificationData
    from focalnet.data.detection import DetectionData as DetectionData
    from focalnet.data.detection_transforms import DetectionAugmentation as DetectionAugmentation
    from focalnet.data.images import find as find
    from focalnet.data.images import read as read
    from focalnet.data.panoptic import PanopticData as PanopticData
    from focalnet.data.panoptic_transforms import PanopticAugmentation as PanopticAugmentation
    from focalnet.data.preprocess import eval_transform as eval_transform
    from focalnet.data.semantic import SemanticData as SemanticData
    from focalnet.data.semantic_transforms import SemanticAugmentation as SemanticAugmentation
    from focalnet.data.transforms import Augmentation as Augmentation


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f'module "focalnet.data" has no attribute "{name}"')
    return getattr(importlib.import_module(f"focalnet.data.{_WHERE[name]}"), name)
