"""Who looks at single operations: compilers, exporters, tracers, PyTorch's modes and ``torch.func``."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

_ORDINARY = (torch.Tensor, torch.nn.Parameter)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def exporting() -> bool:
    """Whether ``torch.export`` or ``torch.jit.trace`` is looking, not ``torch.compile``: their graphs run without us.

    Asked past the tracer: that of torch 2.10 takes every compilation for an export.
    """
    return torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def transformed() -> bool:
    """Whether ``torch.func`` transforms operations (vmap, jvp, grad, ...) or forward-mode AD differentiates them.

    Both follow PyTorch's own operations only: an operation of ours would lose the tangents without a word. All of ours
    therefore run as PyTorch's operations there.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def unobserved() -> bool:
    """Whether nobody looks at single operations: no compiler, exporter, tracer, dispatch mode or function transform."""
    return not (torch.compiler.is_compiling() or exporting() or torch._C._len_torch_dispatch_stack() or transformed())


def ordinary(*tensors: torch.Tensor) -> bool:
    """Whether these are plain dense tensors: no subclass, nothing sparse."""
    return all(type(t) in _ORDINARY and t.layout is torch.strided for t in tensors)


def on_cpu(*tensors: torch.Tensor) -> bool:
    """Whether these are plain dense tensors in the memory of the CPU."""
    return all(type(t) in _ORDINARY and t.is_cpu and t.layout is torch.strided for t in tensors)
