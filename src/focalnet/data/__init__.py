"""From files to batches. Names are imported when first used: reading an image must not need Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from focalnet import lazy

_WHERE = {
    "Augmentation": "augment",
    "ClassificationData": "modules.classification",
    "DetectionAugmentation": "augment",
    "DetectionData": "modules.detection",
    "MultiLabelData": "modules.multilabel",
    "PanopticAugmentation": "augment",
    "PanopticData": "modules.panoptic",
    "SemanticAugmentation": "augment",
    "SemanticData": "modules.semantic",
    "eval_transform": "preprocess",
    "find": "images",
    "read": "images",
}
__all__ = list(_WHERE)

if TYPE_CHECKING:
    from focalnet.data.augment import Augmentation as Augmentation
    from focalnet.data.augment import DetectionAugmentation as DetectionAugmentation
    from focalnet.data.augment import PanopticAugmentation as PanopticAugmentation
    from focalnet.data.augment import SemanticAugmentation as SemanticAugmentation
    from focalnet.data.images import find as find
    from focalnet.data.images import read as read
    from focalnet.data.modules.classification import ClassificationData as ClassificationData
    from focalnet.data.modules.detection import DetectionData as DetectionData
    from focalnet.data.modules.multilabel import MultiLabelData as MultiLabelData
    from focalnet.data.modules.panoptic import PanopticData as PanopticData
    from focalnet.data.modules.semantic import SemanticData as SemanticData
    from focalnet.data.preprocess import eval_transform as eval_transform

__getattr__ = lazy.attributes(__name__, _WHERE)
