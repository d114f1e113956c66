"""Trained networks as files for other runtimes: ONNX, and PyTorch's exported programs."""

from focalnet.exporting.exporting import Exported, export
from focalnet.exporting.quantization.in_pytorch import int8_from_data

__all__ = ["Exported", "export", "int8_from_data"]
