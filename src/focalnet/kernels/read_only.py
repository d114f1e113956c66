"""Read-only weights, and the error raised on writing to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from focalnet.errors import FrozenError


def refuse(what: str) -> NoReturn:
    """Raises FrozenError with ``what`` as the problem."""
    raise FrozenError(
        f"{what}: focalnet.optimize has frozen this model for inference; first call undo() of the object it returned, "
        "and optimize again afterwards"
    )


def _read_only(
    cls: Any, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
) -> Any:
    """``__torch_function__`` of read-only tensors; their views are read-only, too, and arrays are copies."""
    kwargs = kwargs or {}
    if _writes(func, args, kwargs):
        refuse("cannot modify a weight")
    with torch._C.DisableTorchFunctionSubclass():
        storages = {_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, _READ_ONLY)}
        return tree_map(lambda out: _guarded(out, storages), func(*args, **kwargs))


def _set(*_: Any, **__: Any) -> NoReturn:
    """Replaces ``Tensor.set_``, which bypasses ``__torch_function__``."""
    refuse("cannot modify a weight")


class FrozenParameter(nn.Parameter):
    """A read-only parameter, made from a parameter by swapping its class."""

    __torch_function__ = classmethod(_read_only)
    set_ = _set

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("__class__", "__dict__"):  # torch.utils.swap_tensors sets these first
            refuse("cannot swap a weight with another tensor")
        super().__setattr__(name, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return nn.Parameter, (plain(self).clone(), False)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        memo[id(self)] = copied = nn.Parameter(plain(self).clone(), False)
        return copied


class FrozenTensor(torch.Tensor):
    """A read-only view of a frozen parameter, as in ``state_dict()``."""

    __torch_function__ = classmethod(_read_only)
    set_ = _set

    def __reduce_ex__(self, protocol: Any) -> Any:
        return plain(self).clone().__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        memo[id(self)] = copied = plain(self).clone()
        return copied


class FrozenStorage(torch.UntypedStorage):
    """The read-only storage of a frozen parameter, made from its storage by swapping the class."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        refuse("cannot modify the memory of a weight")

    fill_ = copy_ = resize_ = byteswap = __setitem__ = _refuse

    def clone(self) -> torch.UntypedStorage:
        return torch.UntypedStorage(self.nbytes(), device=self.device).copy_(self)  # type: ignore[no-untyped-call]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.clone().__reduce_ex__(protocol)


_READ_ONLY = (FrozenParameter, FrozenTensor)
_OPERATORS = "add sub mul matmul truediv floordiv mod pow and or xor lshift rshift".split()
_INPLACE_OPERATORS = {"__setitem__", *(f"__i{name}__" for name in _OPERATORS)}


def _writes(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    name = getattr(func, "__name__", "")
    schema = getattr(func, "_schema", None)
    if schema is not None:  # an operator overload, PyTorch's or a custom one
        given = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)} | kwargs
        written = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        return any(isinstance(x, _READ_ONLY) for x in tree_leaves([given.get(name) for name in written]))
    if any(isinstance(x, _READ_ONLY) for x in tree_leaves(kwargs.get("out"))):
        return True
    if name in ("__dlpack__", "storage"):  # these expose the memory
        return True
    if name == "__set__":  # sets an attribute; grad is allowed, since inference ignores it
        return bool(func != torch.Tensor.__dict__.get("grad", torch._C.TensorBase.grad).__set__)
    inplace = name in _INPLACE_OPERATORS or (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace")
    if not inplace or not args:
        return False
    if name == "requires_grad_" and (args[1:] == (False,) or kwargs.get("requires_grad") is False):
        return False
    return any(isinstance(x, _READ_ONLY) for x in tree_leaves(args[0]))


def _guarded(out: Any, storages: set[int]) -> Any:
    """Makes a result read-only if it shares memory with a frozen weight."""
    if isinstance(out, np.ndarray):
        out = out.copy()
        out.flags.writeable = False
    elif type(out) is torch.Tensor and out.layout is torch.strided and _storage(out) in storages:
        out = out.as_subclass(FrozenTensor)
    return out


def _storage(x: torch.Tensor) -> int:
    return int(x.untyped_storage()._cdata)


def plain(parameter: torch.Tensor) -> torch.Tensor:
    """The parameter as an ordinary tensor on the same memory, for kernels only."""
    with torch._C.DisableTorchFunctionSubclass():
        return parameter.detach().as_subclass(torch.Tensor)
