"""Everything about speed, and only here: the plain modules of ``focalnet.nn`` made fast without changing them.

``fuse`` swaps the classes of modules for fused ones that share their parameters; a fused module runs fused only while
each of its parts is exactly what its class says. ``optimize`` freezes them for inference.
"""

from focalnet.kernels.dispatch import focal_context
from focalnet.kernels.matmul import linear, linear_of_product, mlp
from focalnet.kernels.rows import fork_and_norm, layer_norm

__all__ = ["focal_context", "fork_and_norm", "layer_norm", "linear", "linear_of_product", "mlp"]
