"""The segmenters the paper published, on every FocalNet that has the maps for them. Data only.

UPerNet is as in ``segmentation/configs`` of microsoft/FocalNet: the first kernel of every stage is 9, odd sizes and
overlapped stems are padded. Mask2Former was never released: its backbones keep the kernels and stems they were trained
with, as section 4.3 of arXiv 2203.11926 says of FocalNet-L's kernels. docs/design/segmentation.md tells what is known
of that network.
"""

from __future__ import annotations

from typing import Any

from focalnet.models.base import SegmenterConfig
from focalnet.models.dense_variants import BACKBONES, DenseVariant, dense_shape
from focalnet.models.mask2former import Mask2FormerConfig
from focalnet.models.upernet import UPerNetConfig
from focalnet.models.variants import VARIANTS

METHODS: dict[str, type[SegmenterConfig]] = {"upernet": UPerNetConfig, "mask2former": Mask2FormerConfig}
SegmenterVariant = DenseVariant[SegmenterConfig]


def _shape(method: str, backbone: str) -> dict[str, Any]:
    return dense_shape(backbone) if method == "upernet" else {**VARIANTS[backbone].shape, "pad_to_stride": True}


SEGMENTERS = {
    f"{method}_{backbone}": SegmenterVariant(method, config_class, backbone, _shape(method, backbone))
    for method, config_class in METHODS.items()
    for backbone in BACKBONES
}
# FocalNet-L as the paper describes it: kernels 3, 5, 7 and, by its parameters, patches that do not overlap.
SEGMENTERS["mask2former_focalnet_large_lrf"] = SegmenterVariant(
    "mask2former",
    Mask2FormerConfig,
    "focalnet_large_fl3",
    _shape("mask2former", "focalnet_large_fl3") | {"focal_windows": (3, 3, 3, 3), "overlapped": False},
)
