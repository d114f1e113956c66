"""What a FocalNet attends to: gates, modulators and kernels."""

from focalnet.explanations.explaining import explain
from focalnet.explanations.explanation import BlockMaps, Explanation
from focalnet.explanations.recording import BlockRecord, block_names, kernels, record

__all__ = ["BlockMaps", "BlockRecord", "Explanation", "block_names", "explain", "kernels", "record"]
