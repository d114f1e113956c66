"""Mask2Former: one file for its settings, pixel decoder, queries, results and network each."""

from focalnet.models.mask2former.config import Mask2FormerConfig
from focalnet.models.mask2former.network import Mask2Former, Mask2FormerOutputs

__all__ = ["Mask2Former", "Mask2FormerConfig", "Mask2FormerOutputs"]
