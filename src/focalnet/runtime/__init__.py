"""Prediction with exported files by ONNX Runtime or OpenVINO, NumPy and Pillow; nothing here imports PyTorch."""

from focalnet.runtime.header import Header
from focalnet.runtime.predictor import Predictor
from focalnet.runtime.sessions import read_header

__all__ = ["Header", "Predictor", "read_header"]
