"""Detects what intercepts single operations: compilers, exporters, tracers, dispatch modes and ``torch.func``.

And one such mode: ``on_meta``, for networks without memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

Function = TypeVar("Function", bound=Callable[..., Any])

_grid_sample: ContextVar[bool] = ContextVar("grid_sample", default=True)
_ORDINARY = (torch.Tensor, torch.nn.Parameter)
# What normal and truncated normal initial values are drawn by.
_NORMAL = (torch.nn.init.normal_, torch.Tensor.normal_, torch.Tensor.erfinv_)


def constant(function: Function) -> Function:
    """Marks a function that compilers call once and take the result of as constant.

    It is ``torch.compiler.assume_constant_result``, which imports the compiler and so takes two seconds.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant
def exporting() -> bool:
    """Whether ``torch.export`` or ``torch.jit.trace`` is active, whose graphs must run without this library.

    Evaluated outside the tracer, because torch 2.10 reports every compilation as an export inside it.
    """
    return torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None


@constant
def transformed() -> bool:
    """Whether ``torch.func`` (vmap, jvp, grad, ...) or forward-mode AD is active.

    Both support only PyTorch's own operations; custom operations would silently lose the tangents. All operations of
    this library therefore run as PyTorch's operations there.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def unobserved() -> bool:
    """Whether nothing intercepts single operations: no compiler, exporter, tracer, dispatch mode or transform."""
    return not (torch.compiler.is_compiling() or exporting() or torch._C._len_torch_dispatch_stack() or transformed())


def ordinary(*tensors: torch.Tensor) -> bool:
    """Whether these are strided tensors of no subclass."""
    return all(type(t) in _ORDINARY and t.layout is torch.strided for t in tensors)


def on_cpu(*tensors: torch.Tensor) -> bool:
    """Whether these are strided CPU tensors of no subclass."""
    return all(type(t) in _ORDINARY and t.is_cpu and t.layout is torch.strided for t in tensors)


@contextmanager
def grid_sample(allowed: bool) -> Iterator[None]:
    """Context that says whether graphs exported within may contain ``grid_sample``, which some runtimes get wrong."""
    token = _grid_sample.set(allowed)
    try:
        yield
    finally:
        _grid_sample.reset(token)


def grid_sample_allowed() -> bool:
    """Whether exported graphs may contain ``grid_sample``; see ``grid_sample``."""
    return _grid_sample.get()


@contextmanager
def on_meta() -> Iterator[None]:
    """Context in which networks are built without memory, on the meta device.

    There PyTorch draws normally distributed initial values, of which nothing is kept, by a function that imports its
    compiler, which takes two seconds. Here tensors without memory are left as they are.
    """
    with torch.device("meta"), _WithoutValues():
        yield


class _WithoutValues(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _NORMAL and (tensor := args[0] if args else kwargs["tensor"]).is_meta:
            return tensor
        return func(*args, **kwargs)
