"""Reads and writes weights: published names and files of any layout to a config and a state dict, and back.

The names below are imported when first used: listing the published weights must not need PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from focalnet import lazy

_WHERE = {
    "ApproximatePreprocessing": "checkpoint",
    "Checkpoint": "checkpoint",
    "Entry": "catalogue",
    "NonFiniteWeights": "checkpoint",
    "UnsettledSetting": "checkpoint",
    "cached": "cache",
    "class_names": "labels",
    "cut_to_imagenet1k": "labels",
    "entries": "catalogue",
    "export": "checkpoint",
    "fetch": "download",
    "list_weights": "catalogue",
    "push_to_hub": "hub",
    "read": "checkpoint",
    "save": "checkpoint",
    "save_pretrained": "hub",
    "untold": "checkpoint",
    "with_channels": "checkpoint",
}
__all__ = list(_WHERE)

if TYPE_CHECKING:
    from focalnet.weights.cache import cached as cached
    from focalnet.weights.catalogue import Entry as Entry
    from focalnet.weights.catalogue import entries as entries
    from focalnet.weights.catalogue import list_weights as list_weights
    from focalnet.weights.checkpoint import ApproximatePreprocessing as ApproximatePreprocessing
    from focalnet.weights.checkpoint import Checkpoint as Checkpoint
    from focalnet.weights.checkpoint import NonFiniteWeights as NonFiniteWeights
    from focalnet.weights.checkpoint import UnsettledSetting as UnsettledSetting
    from focalnet.weights.checkpoint import export as export
    from focalnet.weights.checkpoint import read as read
    from focalnet.weights.checkpoint import save as save
    from focalnet.weights.checkpoint import untold as untold
    from focalnet.weights.checkpoint import with_channels as with_channels
    from focalnet.weights.download import fetch as fetch
    from focalnet.weights.hub import push_to_hub as push_to_hub
    from focalnet.weights.hub import save_pretrained as save_pretrained
    from focalnet.weights.labels import class_names as class_names
    from focalnet.weights.labels import cut_to_imagenet1k as cut_to_imagenet1k

__getattr__ = lazy.attributes(__name__, _WHERE)
