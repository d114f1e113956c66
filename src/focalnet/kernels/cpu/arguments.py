"""Arguments of kernels: checks of a tensor before its address is passed, since a kernel does no checks of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from focalnet.errors import InputError

DTYPES = (torch.float32, torch.bfloat16)
_ORDINARY = (torch.Tensor, torch.nn.Parameter)


class Steps(NamedTuple):
    """How numbers become uint8 levels: ``round(y / scale) + zero_point``, ties to even, limited to 0 ... 255.

    NaN becomes the zero point.

    Args:
        scale: the step between two levels, positive.
        zero_point: the level of 0, from 0 to 255.
    """

    scale: float
    zero_point: int

    @property
    def levels(self) -> float:
        """Levels per unit."""
        return 1 / self.scale


def check(name: str, x: torch.Tensor, dtype: torch.dtype | None = None, shape: Sequence[int] | None = None) -> None:
    """Raises InputError unless ``x`` is an ordinary CPU tensor that lies entirely within its storage.

    Args:
        name: name of the tensor in the message.
        x: a tensor with any strides.
        dtype: required dtype; None for any of ``DTYPES``.
        shape: required shape; None for any.
    """
    ordinary = type(x) in _ORDINARY and x.is_cpu and x.layout is torch.strided
    fits = (x.dtype is dtype or (dtype is None and x.dtype in DTYPES)) and (shape is None or x.shape == shape)
    if not (ordinary and fits and x.data_ptr() and not x.is_neg() and _within_storage(x)):
        raise InputError(_problem(name, x, dtype, shape))


def values(name: str, x: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
    """Checks ``x`` and makes it contiguous; if ``like`` is given, dtype and shape must be the same."""
    check(name, x, *(() if like is None else (like.dtype, like.shape)))
    return x.contiguous()


def floats(name: str, weight: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Converts a parameter of any floating-point dtype to contiguous float32, as the kernels read it."""
    if weight.dtype is not torch.float32 and weight.is_floating_point():
        weight = weight.detach().float()
    check(name, weight, torch.float32, shape)
    return weight if weight.is_contiguous() else weight.detach().contiguous()


def _within_storage(x: torch.Tensor) -> bool:
    """Whether the storage holds all of the tensor: it can be freed or resized independently."""
    end = x.storage_offset() + 1
    if x.is_contiguous():
        end += x.numel() - 1
    else:
        for n, step in zip(x.shape, x.stride(), strict=True):
            end += (n - 1) * step
    return x.numel() > 0 and x.untyped_storage().nbytes() >= end * x.itemsize


def _problem(name: str, x: torch.Tensor, dtype: torch.dtype | None, shape: Sequence[int] | None) -> str:
    if type(x) not in _ORDINARY:
        return f"{name} is a {type(x).__name__}; the CPU kernels take ordinary tensors"
    if not x.is_cpu or x.layout is not torch.strided:
        return f"{name} is a {x.layout} tensor on {x.device}; the CPU kernels take dense tensors on the CPU"
    if shape is not None and x.shape != shape:
        return f"{name} has the shape {tuple(x.shape)}, expected {tuple(shape)}"
    if x.numel() == 0:
        return f"{name} of shape {tuple(x.shape)} is empty, which the CPU kernels do not support"
    if x.dtype is not dtype and (dtype is not None or x.dtype not in DTYPES):
        expected = "float32 or bfloat16" if dtype is None else str(dtype).removeprefix("torch.")
        return f"{name} is {str(x.dtype).removeprefix('torch.')}; the CPU kernels need {expected}"
    if x.is_neg():
        return f"{name} has its negative bit set: call resolve_neg() first"
    return f"{name} of shape {tuple(x.shape)} has no memory: its storage was freed or resized"
