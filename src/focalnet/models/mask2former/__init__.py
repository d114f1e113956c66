"""Mask2Former (Cheng et al., CVPR 2022, arXiv 2112.01527).

The Mask2Former of arXiv 2203.11926 was not released. The backbones keep the kernel sizes and stems of their
pretraining, as its section 4.3 says of FocalNet-L's kernels. docs/design/segmentation.md collects what is known.
"""

from dataclasses import replace
from typing import Any

from focalnet.card import Preprocessing
from focalnet.models.base import ModelFamily
from focalnet.models.mask2former.config import Mask2FormerConfig
from focalnet.models.mask2former.layouts import OPENMMLAB
from focalnet.models.mask2former.network import Mask2Former, Mask2FormerOutputs
from focalnet.models.variants import VARIANTS, dense_variants

__all__ = ["FAMILIES", "Mask2Former", "Mask2FormerConfig", "Mask2FormerOutputs"]


def _shape(backbone: str) -> dict[str, Any]:
    return {**VARIANTS[backbone].shape, "pad_to_stride": True}


_VARIANTS = dense_variants("mask2former", _shape)
# FocalNet-L as the paper describes it: kernels 3, 5, 7 and, by its number of parameters, non-overlapping patches.
_VARIANTS["mask2former_focalnet_large_lrf"] = replace(
    _VARIANTS["mask2former_focalnet_large_fl3"],
    shape=_shape("focalnet_large_fl3") | {"focal_windows": (3, 3, 3, 3), "overlapped": False},
)

FAMILIES = (
    ModelFamily(
        name="mask2former",
        file_kind="mask2former",
        tasks=("panoptic", "semantic", "detection"),
        config=Mask2FormerConfig,
        variants=_VARIANTS,
        preprocessing=Preprocessing(image_size=800, max_size=1333, crop_pct=1.0, interpolation="bilinear"),
        labels="coco",
        layout=OPENMMLAB,
    ),
)
