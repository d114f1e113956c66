"""Trained networks as files for other runtimes: ONNX, and PyTorch's exported programs."""

from focalnet.exporting.exporting import Exported, export

__all__ = ["Exported", "export"]
