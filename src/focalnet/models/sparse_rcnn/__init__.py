"""Sparse R-CNN (Sun et al., CVPR 2021, arXiv 2011.12450) as in section 4.2 of arXiv 2203.11926."""

from typing import Any

from focalnet.card import Preprocessing
from focalnet.models.base import ModelFamily
from focalnet.models.sparse_rcnn.config import SparseRCNNConfig
from focalnet.models.sparse_rcnn.layouts import OPENMMLAB
from focalnet.models.sparse_rcnn.network import SparseRCNN, SparseRCNNOutputs, SparseStage
from focalnet.models.variants import dense_shape, dense_variants

__all__ = ["FAMILIES", "SparseRCNN", "SparseRCNNConfig", "SparseRCNNOutputs", "SparseStage"]


def _shape(backbone: str) -> dict[str, Any]:
    """Focal windows 11, 9, 9, 7 by stage (``detection/configs`` of the release)."""
    return dense_shape(backbone, four_windows=(11, 9, 9, 7))


FAMILIES = (
    ModelFamily(
        name="sparse_rcnn",
        file_kind="sparse_rcnn",
        tasks=("detection",),
        config=SparseRCNNConfig,
        variants=dense_variants("sparse_rcnn", _shape),
        preprocessing=Preprocessing(image_size=800, max_size=1333, crop_pct=1.0, interpolation="bilinear"),
        labels="coco",
        layout=OPENMMLAB,
    ),
)
