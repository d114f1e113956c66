"""Sparse R-CNN (Sun et al., CVPR 2021, arXiv 2011.12450)."""

from focalnet.models.sparse_rcnn.config import SparseRCNNConfig
from focalnet.models.sparse_rcnn.network import SparseRCNN, SparseRCNNOutputs, SparseStage

__all__ = ["SparseRCNN", "SparseRCNNConfig", "SparseRCNNOutputs", "SparseStage"]
