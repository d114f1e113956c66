"""ATSS (Zhang et al., CVPR 2020, arXiv 1912.02424) as in section 4.2 of arXiv 2203.11926."""

from typing import Any

from focalnet.card import Preprocessing
from focalnet.models.atss.config import ATSSConfig
from focalnet.models.atss.layouts import OPENMMLAB
from focalnet.models.atss.network import ATSS, ATSSOutputs
from focalnet.models.base import ModelFamily
from focalnet.models.variants import dense_shape, dense_variants

__all__ = ["ATSS", "FAMILIES", "ATSSConfig", "ATSSOutputs"]


def _shape(backbone: str) -> dict[str, Any]:
    """Focal windows 11, 9, 9, 7 by stage, feature maps of strides 8, 16, 32 (``detection/configs`` of the release)."""
    shape = dense_shape(backbone, four_windows=(11, 9, 9, 7))
    return shape | ({"out_indices": (1, 2, 3)} if len(shape["depths"]) == 4 else {})


FAMILIES = (
    ModelFamily(
        name="atss",
        file_kind="atss",
        tasks=("detection",),
        config=ATSSConfig,
        variants=dense_variants("atss", _shape),
        preprocessing=Preprocessing(image_size=800, max_size=1333, crop_pct=1.0, interpolation="bilinear"),
        labels="coco",
        layout=OPENMMLAB,
    ),
)
