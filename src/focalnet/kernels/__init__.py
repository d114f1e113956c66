"""Fused operations for the modules of ``focalnet.nn``, and the kernels they run on.

``fuse`` swaps the classes of modules for fused ones that share their parameters. A fused module uses its fused path
only while all its submodules are unmodified. ``optimize`` freezes modules for inference.
"""

from focalnet import lazy
from focalnet.kernels.deformable import deformable_attention
from focalnet.kernels.dispatch import focal_context
from focalnet.kernels.matmul import linear, linear_of_product, mlp
from focalnet.kernels.rowwise import fork_and_norm, layer_norm

__all__ = ["deformable_attention", "focal_context", "fork_and_norm", "layer_norm", "linear", "linear_of_product", "mlp"]

lazy.follow({"torch.utils.flop_counter": "focalnet.kernels.flops"})
