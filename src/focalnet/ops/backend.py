"""Which implementation of an operation runs: ``auto``, ``eager``, ``native`` (CPU) or ``triton`` (CUDA).

``auto`` takes the fastest that can; asked for by name, a backend that cannot run is an error that says why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, get_args

import torch
from torch.autograd import forward_ad

from focalnet.errors import ConfigError, InputError, did_you_mean

Backend = Literal["auto", "eager", "native", "triton"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
_ENVIRONMENT = os.environ.get("FOCALNET_BACKEND", "auto")
_chosen: ContextVar[str] = ContextVar("focalnet_backend", default=_ENVIRONMENT)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def current() -> Backend:
    """The backend chosen by ``use``, else by the environment variable ``FOCALNET_BACKEND``, else ``auto``.

    The variable is read when the library is imported. A compiled model keeps the one of its compilation.
    """
    return _named(_chosen.get())


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


def on_cpu(*tensors: torch.Tensor) -> bool:
    """Whether these are ordinary tensors in the memory of the CPU: no subclass, nothing sparse."""
    return all(
        type(t) in (torch.Tensor, torch.nn.Parameter) and t.device.type == "cpu" and t.layout is torch.strided
        for t in tensors
    )


def unobserved() -> bool:
    """Whether nobody looks at single operations: no compiler, exporter, tracer, dispatch mode or function transform."""
    return not (torch.compiler.is_compiling() or exporting() or torch._C._len_torch_dispatch_stack() or transformed())


@contextmanager
def use(backend: Backend) -> Iterator[None]:
    """Within the ``with`` block, operations run on this backend.

    Raises:
        ConfigError: no such backend.
    """
    token = _chosen.set(_named(backend))
    try:
        yield
    finally:
        _chosen.reset(token)


def _named(name: str) -> Backend:
    if name not in BACKENDS:
        raise ConfigError(f'no backend "{name}"{did_you_mean(name, BACKENDS)}; there are {", ".join(BACKENDS)}')
    backend: Backend = name
    return backend


def available() -> dict[str, str]:
    """For ``focalnet doctor``: what each backend is here, or why it is refused."""
    from focalnet.ops import native, triton

    def kernels() -> str:
        library = native.load()
        return f"{library.variant} kernels (has {', '.join(library.variants)})"

    return {"eager": "yes", "native": _state(kernels), "triton": _state(lambda: triton.load(torch.device("cuda")))}


def _state(load: Callable[[], str]) -> str:
    try:
        return f"yes, {load()}"
    except InputError as error:
        return f"no: {error}"
