"""Trained networks at work on pictures."""

from focalnet.inference.predictor import Predictor, devices
from focalnet.inference.tiling import Looks

__all__ = ["Looks", "Predictor", "devices"]
