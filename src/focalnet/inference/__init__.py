"""Trained networks at work on pictures."""

from focalnet.inference.predictor import Predictor, devices

__all__ = ["Predictor", "devices"]
