"""torchvision's operations on boxes and regions, imported when first used.

torchvision imports all its models and PyTorch's compiler, which takes seconds that predictions without these operations
need not wait for: ``vision.nms(...)``.
"""

from __future__ import annotations

from focalnet import lazy

_NAMES = (
    "batched_nms box_area box_convert box_iou generalized_box_iou generalized_box_iou_loss nms roi_align "
    "sigmoid_focal_loss"
)

__getattr__ = lazy.attributes("torchvision", dict.fromkeys(_NAMES.split(), "ops"))
