"""Prediction with exported files, by ONNX Runtime, NumPy and Pillow alone: nothing in this package imports PyTorch."""

from focalnet.runtime.header import Header, read_header
from focalnet.runtime.predictor import Predictor

__all__ = ["Header", "Predictor", "read_header"]
