"""Backbone, neck and head make a network, with its postprocessing. Nothing here knows a loss or a file."""

from focalnet.models.classifier import Classifier, ClassifierConfig

__all__ = ["Classifier", "ClassifierConfig"]
