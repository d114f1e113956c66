"""DINO (Zhang et al., ICLR 2023, arXiv 2203.03605) as FocalNet-DINO has it."""

from typing import Any

from focalnet.card import Preprocessing
from focalnet.models.base import ModelFamily
from focalnet.models.dino.config import DINOConfig
from focalnet.models.dino.layouts import OPENMMLAB
from focalnet.models.dino.network import DINO, DINOOutputs
from focalnet.models.variants import VARIANTS, dense_variants

__all__ = ["DINO", "FAMILIES", "DINOConfig", "DINOOutputs"]


def _shape(backbone: str) -> dict[str, Any]:
    """Kernels and stems are those that classification has trained (``models/dino/focal.py`` of the release)."""
    return {**VARIANTS[backbone].shape, "pad_to_stride": True}


FAMILIES = (
    ModelFamily(
        name="dino",
        file_kind="dino",
        tasks=("detection",),
        config=DINOConfig,
        variants=dense_variants("dino", _shape),
        preprocessing=Preprocessing(image_size=800, max_size=1333, crop_pct=1.0, interpolation="bilinear"),
        labels="coco",
        layout=OPENMMLAB,
    ),
)
