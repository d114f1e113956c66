"""Tensors in, tensors out. Nothing here knows a module, a file or a name."""

from focalnet.ops.focal_context import focal_context

__all__ = ["focal_context"]
