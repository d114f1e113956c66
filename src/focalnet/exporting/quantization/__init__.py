"""Int8 files: data to calibrate and measure with, layers of each format, and how they are chosen."""

from focalnet.exporting.quantization.data import LabeledData
from focalnet.exporting.quantization.quantizing import LayerCost, Quantization, quantize

__all__ = ["LabeledData", "LayerCost", "Quantization", "quantize"]
