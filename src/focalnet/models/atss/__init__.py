"""ATSS (Zhang et al., CVPR 2020, arXiv 1912.02424)."""

from focalnet.models.atss.config import ATSSConfig
from focalnet.models.atss.network import ATSS, ATSSOutputs

__all__ = ["ATSS", "ATSSConfig", "ATSSOutputs"]
