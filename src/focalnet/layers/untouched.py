"""Whether a module does what its class says, so that its operation may be called without it."""

from __future__ import annotations

from torch import nn


def untouched(module: nn.Module) -> bool:
    """Whether calling the module is calling its class's ``forward`` and nothing else."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return not hooks and "forward" not in vars(module)
