"""Registration of the CPU and GPU kernels with ``torch.library``."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import torch
from torch._library.custom_ops import CustomOpDef
from torch.autograd import forward_ad

from focalnet.errors import InputError
from focalnet.ops import modes


def registered(name: str, kernel: Callable[..., Any], device_types: str | None = "cpu") -> CustomOpDef:
    """``torch.library.custom_op`` for a kernel that modifies none of its arguments; by default one for the CPU.

    It raises ``InputError`` if it is called within forward-mode AD, where PyTorch would silently lose the tangents.
    """

    @functools.wraps(kernel)
    def refusing(*arguments: Any) -> Any:
        if forward_ad._current_level >= 0:
            raise InputError(
                f"{name} has no forward-mode derivative: call the function in focalnet.kernels, which has one"
            )
        return kernel(*arguments)

    schema = torch.library.infer_schema(kernel, mutates_args=())
    return torch.library.custom_op(name, refusing, mutates_args=(), device_types=device_types, schema=schema)


class KernelOp:
    """An operation registered with ``torch.library``, so that compilers, exporters, tracers and modes see one node.

    Without any of them and without gradients, the kernel is called directly: PyTorch's dispatcher takes some 40
    microseconds within a network, longer than a small kernel.

    Args:
        name: ``"focalnet::..."``.
        kernel: annotated as ``torch.library.custom_op`` requires; modifies none of its arguments.
    """

    def __init__(self, name: str, kernel: Callable[..., Any]) -> None:
        self.kernel = kernel
        self.op = registered(name, kernel)

    def __call__(self, x: torch.Tensor, *others: Any) -> Any:
        direct = type(x) in (torch.Tensor, torch.nn.Parameter) and not torch.is_grad_enabled() and modes.unobserved()
        return self.kernel(x, *others) if direct else self.op(x, *others)


class Named:
    """An object that compiled graphs cannot hold, such as packed weights; they look it up by ``name`` at each call.

    It is neither copied nor saved with its module; the copy has None instead.
    """

    _by_name: ClassVar[WeakValueDictionary[str, Any]] = WeakValueDictionary()
    _names: ClassVar[Iterator[str]] = map(str, itertools.count())

    def __init__(self) -> None:
        self.name = next(self._names)
        self._by_name[self.name] = self

    @classmethod
    def find(cls, name: str) -> Any:
        """The object of this name; None if it no longer exists."""
        return cls._by_name.get(name)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()
