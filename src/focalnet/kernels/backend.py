"""Which implementation of an operation runs: ``auto``, ``eager``, ``native`` (CPU) or ``triton`` (CUDA).

``auto`` takes the fastest backend that can run. A backend requested by name that cannot run raises an error with the
reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, get_args

import torch

from focalnet.errors import ConfigError, InputError, did_you_mean
from focalnet.ops import modes

Backend = Literal["auto", "eager", "native", "triton"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
_ENVIRONMENT = os.environ.get("FOCALNET_BACKEND", "auto")
_chosen: ContextVar[str] = ContextVar("focalnet_backend", default=_ENVIRONMENT)


@modes.constant
def current() -> Backend:
    """The backend set by ``use``, by the environment variable ``FOCALNET_BACKEND`` or, without either, ``auto``.

    The variable is read when the library is imported. A compiled model keeps the backend of its compilation.
    """
    return _checked(_chosen.get())


@contextmanager
def use(backend: Backend) -> Iterator[None]:
    """Context in which operations run on this backend.

    Raises:
        ConfigError: there is no such backend.
    """
    token = _chosen.set(_checked(backend))
    try:
        yield
    finally:
        _chosen.reset(token)


def _checked(name: str) -> Backend:
    if name not in BACKENDS:
        raise ConfigError(f'no backend "{name}"{did_you_mean(name, BACKENDS)}; there are {", ".join(BACKENDS)}')
    backend: Backend = name
    return backend


def available() -> dict[str, str]:
    """State of each backend on this machine, or why it cannot run; for ``focalnet doctor``."""
    from focalnet.kernels import cpu, triton

    def kernels() -> str:
        library = cpu.load()
        return f"{library.variant} kernels (has {', '.join(library.variants)})"

    def experimental() -> str:
        found = triton.load(torch.device("cuda"), operation=triton.DEFORMABLE)
        return f"{found}: experimental, tested only in Triton's interpreter so far"

    return {
        "eager": "yes",
        "native": _state(kernels),
        "triton": _state(lambda: triton.load(torch.device("cuda"))),
        f"triton, {triton.DEFORMABLE}": _state(experimental),
    }


def _state(load: Callable[[], str]) -> str:
    try:
        return f"yes, {load()}"
    except InputError as error:
        return f"no: {error}"
