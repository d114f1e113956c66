"""The detectors the paper published, on every FocalNet that has the maps for them. Data only.

Sources: sections 4.2 and appendix of arXiv 2203.11926, ``detection/configs`` of microsoft/FocalNet. First kernel sizes
are 9 for Mask R-CNN, and 11, 9, 9, 7 by stage for the others; odd sizes and overlapped stems are padded as there.
"""

from __future__ import annotations

from typing import Any

from focalnet.models.atss import ATSSConfig
from focalnet.models.base import DetectorConfig
from focalnet.models.dense_variants import BACKBONES, DenseVariant, dense_shape
from focalnet.models.rcnn import CascadeRCNNConfig, MaskRCNNConfig
from focalnet.models.sparse_rcnn import SparseRCNNConfig

METHODS: dict[str, type[DetectorConfig]] = {
    "mask_rcnn": MaskRCNNConfig,
    "cascade_mask_rcnn": CascadeRCNNConfig,
    "atss": ATSSConfig,
    "sparse_rcnn": SparseRCNNConfig,
}
DetectorVariant = DenseVariant[DetectorConfig]


def _shape(method: str, backbone: str) -> dict[str, Any]:
    shape = dense_shape(backbone, four_windows=(9, 9, 9, 9) if method == "mask_rcnn" else (11, 9, 9, 7))
    if method == "atss" and len(shape["depths"]) == 4:
        shape["out_indices"] = (1, 2, 3)
    return shape


DETECTORS = {
    f"{method}_{backbone}": DetectorVariant(method, config_class, backbone, _shape(method, backbone))
    for method, config_class in METHODS.items()
    for backbone in BACKBONES
}
