"""FocalNets of other libraries on our kernels, and ours in theirs."""

from focalnet.integrations.accelerating import accelerate

__all__ = ["accelerate"]
