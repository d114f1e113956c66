"""Operations of our kernels that are registered with ``torch.library``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from focalnet.ops import backend


class KernelOp:
    """An operation registered with ``torch.library``, so that compilers, exporters, tracers and modes see one node.

    Where none of them looks and no gradient is asked for, the kernel is called directly: the way through PyTorch's
    dispatcher takes some 40 microseconds in the middle of a network, which is more than a small kernel does.

    Args:
        name: ``"focalnet::..."``.
        kernel: annotated as ``torch.library.custom_op`` wants it; changes none of its arguments.
    """

    def __init__(self, name: str, kernel: Callable[..., Any]) -> None:
        self.kernel = kernel
        self.op = torch.library.custom_op(name, kernel, mutates_args=(), device_types="cpu")

    def __call__(self, x: torch.Tensor, *others: Any) -> Any:
        direct = type(x) in (torch.Tensor, torch.nn.Parameter) and not torch.is_grad_enabled() and backend.unobserved()
        return self.kernel(x, *others) if direct else self.op(x, *others)
