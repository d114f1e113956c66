"""Tensors in, tensors out. Nothing here knows a module, a file or a name."""

from focalnet.ops.focal_context import focal_context
from focalnet.ops.pointwise import PackedWeight, linear, linear_of_product, mlp, patches
from focalnet.ops.rows import fork_and_norm, layer_norm

__all__ = [
    "PackedWeight",
    "focal_context",
    "fork_and_norm",
    "layer_norm",
    "linear",
    "linear_of_product",
    "mlp",
    "patches",
]
