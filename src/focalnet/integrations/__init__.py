"""Fused kernels for FocalNets of other libraries, and our FocalNet as a backbone in other libraries."""

from focalnet.integrations.accelerating import accelerate

__all__ = ["accelerate"]
