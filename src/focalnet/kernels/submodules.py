"""Checks that submodules are unmodified, so that fused operations can replace calling them.

A replaced layer (LoRA, quantization), a parametrization, a hook, a patched ``forward``, a weight that is sharded or
quantized: each must have the same effect on a fused model as on the original. If there is any, the modules are called
one by one. Everything is checked in every pass, so that no result can be outdated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as _globals
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.module_tracker import ModuleTracker

from focalnet.errors import InputError
from focalnet.kernels.weights import Linear, Norm
from focalnet.ops import modes

_ORDINARY = (torch.Tensor, nn.Parameter)
_LAYERS = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GELU, nn.Dropout, nn.Identity, nn.Sequential)
_FORWARDS = [(cls, cls.forward) for cls in _LAYERS]
_CALL = nn.Module.__call__


def observed(x: torch.Tensor) -> bool:
    """Whether modules must be called one by one: something intercepts all of them, or ``x`` is a special tensor."""
    return type(x) not in _ORDINARY or modes.transformed() or modes.exporting() or _watched()


@modes.constant
def _watched() -> bool:
    """Whether a global hook, a patched PyTorch class or a mode intercepts every call.

    Exceptions are the mode of ``torch.set_default_device``, which only concerns new tensors, and PyTorch's own dispatch
    modes (fake tensors, counters of operations), which support our operations.
    """
    hooks = (
        _globals._global_forward_hooks
        or _globals._global_forward_pre_hooks
        or _globals._global_backward_hooks
        or _globals._global_backward_pre_hooks
    )
    return bool(hooks) or _intercepted()


@modes.constant
def changed_from_outside() -> bool:
    """Whether something may change the output of every module: as in ``observed``, except for PyTorch's own tracker.

    ``ModuleTracker``, which ``FlopCounterMode`` uses, only records the names of modules.
    """
    tables = (
        _globals._global_forward_hooks,
        _globals._global_forward_pre_hooks,
        _globals._global_backward_hooks,
        _globals._global_backward_pre_hooks,
    )
    hooks = [hook for table in tables for hook in table.values()]
    others = [hook for hook in hooks if not isinstance(getattr(hook, "__self__", None), ModuleTracker)]
    return bool(others) or _intercepted()


def _intercepted() -> bool:
    if nn.Module.__call__ is not _CALL:
        return True
    for cls, forward in _FORWARDS:
        if cls.forward is not forward:
            return True
    return bool(torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack()) and _in_mode()


def _in_mode() -> bool:
    functions: Any = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    if any(type(mode) is not DeviceContext for mode in functions):
        return True
    operations: Any = _get_current_dispatch_mode_stack()
    return not all(type(mode).__module__.startswith("torch.") for mode in operations)


def unmodified(module: nn.Module | None, cls: type[nn.Module]) -> bool:
    """Whether the module is exactly of this class, without hooks or a patched ``forward``."""
    if type(module) is not cls:
        return False
    members = module.__dict__
    return not (
        members["_forward_hooks"]
        or members["_forward_pre_hooks"]
        or members["_backward_hooks"]
        or members["_backward_pre_hooks"]
        or "forward" in members
    )


def parameter(module: nn.Module, name: str) -> torch.Tensor | None:
    """A parameter; None if it is not an ordinary tensor (sharded, quantized, computed by a hook)."""
    value = module._parameters.get(name)
    return value if type(value) in _ORDINARY and value.layout is torch.strided else None  # type: ignore[union-attr]


def _weight_and_bias(module: Any, cls: type[nn.Module]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Weight and bias of an unmodified module: ``unmodified`` and ``parameter`` in one call, for speed."""
    if type(module) is not cls:
        return None
    members = module.__dict__
    if (
        members["_forward_hooks"]
        or members["_forward_pre_hooks"]
        or members["_backward_hooks"]
        or members["_backward_pre_hooks"]
        or "forward" in members
    ):
        return None
    parameters = members["_parameters"]
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if type(weight) not in _ORDINARY or type(bias) not in _ORDINARY:
        return None
    return (weight, bias) if weight.layout is bias.layout is torch.strided else None


def norm(module: Any, dim: int) -> Norm | None:
    """Weight, bias and eps of an unmodified layer norm over the last axis; None otherwise."""
    tensors = _weight_and_bias(module, nn.LayerNorm)
    return None if tensors is None or module.normalized_shape != (dim,) else (*tensors, module.eps)


def linear(module: Any) -> Linear | None:
    """Weight and bias of an unmodified linear layer or 1x1 convolution; None otherwise."""
    if type(module) is nn.Linear:
        return _weight_and_bias(module, nn.Linear)
    tensors = _weight_and_bias(module, nn.Conv2d)
    if tensors is None or module.groups != 1 or module.padding != (0, 0):
        return None
    return (tensors[0].flatten(1), tensors[1]) if module.kernel_size == module.stride == (1, 1) else None


def focal_kernels(levels: Any, is_gelu: Callable[[Any], bool]) -> list[torch.Tensor] | None:
    """The depthwise kernels of the focal levels; None unless each is an unmodified sequence of convolution and GELU."""
    if type(levels) is not nn.ModuleList:
        return None
    kernels: list[torch.Tensor] = []
    for level in levels._modules.values():
        if not unmodified(level, nn.Sequential):
            return None
        members = list(level._modules.values())
        kernel = _depthwise(members[0]) if len(members) == 2 and is_gelu(members[1]) else None
        if kernel is None:
            return None
        kernels.append(kernel)
    return kernels


def _depthwise(module: Any) -> torch.Tensor | None:
    """The kernel of an unmodified depthwise convolution of odd size, "same" padding and no bias; None otherwise."""
    if not unmodified(module, nn.Conv2d):
        return None
    side, pad = module.kernel_size, module.padding
    supported = (
        module.groups == module.in_channels == module.out_channels
        and side[0] == side[1] == 2 * pad[0] + 1
        and pad[0] == pad[1]
        and module.stride == module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and module._parameters.get("bias") is None
    )
    weight = parameter(module, "weight") if supported else None
    return weight if weight is not None and weight.shape[2:] == side else None


def wide_kernel(module: Any) -> torch.Tensor | None:
    """The kernel of an unmodified 3x3 convolution of all channels, "same" padding and no bias; None otherwise."""
    if not unmodified(module, nn.Conv2d):
        return None
    supported = (
        module.kernel_size == (3, 3)
        and module.padding == module.stride == module.dilation == (1, 1)
        and module.groups == 1
        and module.padding_mode == "zeros"
        and module._parameters.get("bias") is None
    )
    return parameter(module, "weight") if supported else None


def of_dtype(kernels: Sequence[torch.Tensor], dtype: torch.dtype) -> bool:
    """Whether all kernels have the dtype. Our operation would cast others, where PyTorch raises an error."""
    for kernel in kernels:
        if kernel.dtype is not dtype:
            return False
    return True


def is_gelu(module: Any) -> bool:
    """Whether this is an unmodified exact GELU of PyTorch."""
    return unmodified(module, nn.GELU) and module.approximate == "none"


def is_identity(module: Any) -> bool:
    """Whether this is an unmodified identity or inactive dropout."""
    if type(module) is nn.Dropout:
        return (module.p == 0.0 or not module.training) and unmodified(module, nn.Dropout)
    return unmodified(module, nn.Identity)


def check_devices(x: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
    """Raises InputError if weights are on another device than ``x``; with weights on meta, PyTorch would not."""
    for tensor in tensors:
        if tensor.device != x.device:
            raise InputError(f"the weights of a FocalNet block are on {tensor.device}, its input is on {x.device}")
