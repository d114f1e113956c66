"""Operations of our kernels that are registered with ``torch.library``, and what such operations are given."""

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


def registered(name: str, kernel: Callable[..., Any]) -> CustomOpDef:
    """``torch.library.custom_op`` of a kernel for the CPU that changes none of its arguments.

    Called by name while forward-mode AD is on, it raises ``InputError``: PyTorch would lose the tangent without a word.
    """

    @functools.wraps(kernel)
    def refusing(*arguments: Any) -> Any:
        if forward_ad._current_level >= 0:
            raise InputError(f"{name} has no forward-mode derivative: call what focalnet.ops offers, which has")
        return kernel(*arguments)

    schema = torch.library.infer_schema(kernel, mutates_args=())
    return torch.library.custom_op(name, refusing, mutates_args=(), device_types="cpu", schema=schema)


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
        self.op = registered(name, kernel)

    def __call__(self, x: torch.Tensor, *others: Any) -> Any:
        direct = type(x) in (torch.Tensor, torch.nn.Parameter) and not torch.is_grad_enabled() and modes.unobserved()
        return self.kernel(x, *others) if direct else self.op(x, *others)


class Named:
    """What stands beside a module's parameters and a compiled graph cannot hold: it asks for its ``name`` at each call.

    It is neither copied nor saved with its module; the copy has None instead.
    """

    _by_name: ClassVar[WeakValueDictionary[str, Any]] = WeakValueDictionary()
    _names: ClassVar[Iterator[str]] = map(str, itertools.count())

    def __init__(self) -> None:
        self.name = next(self._names)
        self._by_name[self.name] = self

    @classmethod
    def find(cls, name: str) -> Any:
        """The one of this name; None for the empty name, and where it is gone."""
        return cls._by_name.get(name)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()
