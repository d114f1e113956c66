"""Reads and writes weights: published names and files of any layout to a config and a state dict, and back."""

from focalnet.weights.catalogue import Entry, entries, list_weights
from focalnet.weights.checkpoint import (
    ApproximatePreprocessing,
    Checkpoint,
    NonFiniteWeights,
    UnsettledSetting,
    export,
    read,
    save,
    untold,
    with_channels,
)
from focalnet.weights.download import cached, fetch
from focalnet.weights.labels import class_names, cut_to_imagenet1k

__all__ = [
    "ApproximatePreprocessing",
    "Checkpoint",
    "Entry",
    "NonFiniteWeights",
    "UnsettledSetting",
    "cached",
    "class_names",
    "cut_to_imagenet1k",
    "entries",
    "export",
    "fetch",
    "list_weights",
    "read",
    "save",
    "untold",
    "with_channels",
]
