"""Whether modules do exactly what their classes say, so that their operations may run without calling them.

A layer that was replaced (LoRA, quantization), a parametrization, a hook, a patched ``forward``, a weight that is
sharded, quantized or on another device: each must act on a fused model as on a plain one. Where one is found, the
modules are called one by one. All of it is looked at anew in every pass, so that nothing can be out of date.
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
_FORWARDS = [(kind, kind.forward) for kind in _LAYERS]
_CALL = nn.Module.__call__


def observed(x: torch.Tensor) -> bool:
    """Whether a pass over ``x`` has to call modules one by one: something watches all of them, or ``x`` is special."""
    return type(x) not in _ORDINARY or modes.transformed() or modes.exporting() or _watched()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _watched() -> bool:
    """Whether a hook of all modules, a patched class of PyTorch or a mode wants to see every call.

    The mode that ``torch.set_default_device`` leaves on sees nothing but new tensors, and PyTorch's own modes of
    operations (fake tensors, counters of operations) know operations of ours.
    """
    hooks = (
        _globals._global_forward_hooks
        or _globals._global_forward_pre_hooks
        or _globals._global_backward_hooks
        or _globals._global_backward_pre_hooks
    )
    return bool(hooks) or _patched_or_moded()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def changed_from_outside() -> bool:
    """Whether something may change what every module gives; as what ``observed`` asks, but for PyTorch's own tracker.

    ``ModuleTracker``, which ``FlopCounterMode`` uses, notes the names of modules and changes nothing.
    """
    tables = (
        _globals._global_forward_hooks,
        _globals._global_forward_pre_hooks,
        _globals._global_backward_hooks,
        _globals._global_backward_pre_hooks,
    )
    hooks = [hook for table in tables for hook in table.values()]
    others = [hook for hook in hooks if not isinstance(getattr(hook, "__self__", None), ModuleTracker)]
    return bool(others) or _patched_or_moded()


def _patched_or_moded() -> bool:
    if nn.Module.__call__ is not _CALL:
        return True
    for kind, forward in _FORWARDS:
        if kind.forward is not forward:
            return True
    return bool(torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack()) and _moded()


def _moded() -> bool:
    functions: Any = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    if any(type(mode) is not DeviceContext for mode in functions):
        return True
    operations: Any = _get_current_dispatch_mode_stack()
    return not all(type(mode).__module__.startswith("torch.") for mode in operations)


def unmodified(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    """Whether calling the module is calling its class's ``forward`` and nothing else."""
    if type(module) is not kind:
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
    """A parameter; None where it is no ordinary tensor (sharded, quantized, computed by a hook)."""
    found = module._parameters.get(name)
    return found if type(found) in _ORDINARY and found.layout is torch.strided else None  # type: ignore[union-attr]


def _weight_and_bias(module: Any, kind: type[nn.Module]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Both, ordinary tensors, of a module that is exactly its class. ``unmodified`` and ``parameter`` in one call."""
    if type(module) is not kind:
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
    own = members["_parameters"]
    weight, bias = own.get("weight"), own.get("bias")
    if type(weight) not in _ORDINARY or type(bias) not in _ORDINARY:
        return None
    return (weight, bias) if weight.layout is bias.layout is torch.strided else None


def norm(module: Any, dim: int) -> Norm | None:
    """Weight, bias and eps of a layer norm of the last axis that is exactly that."""
    found = _weight_and_bias(module, nn.LayerNorm)
    return None if found is None or module.normalized_shape != (dim,) else (*found, module.eps)


def linear(module: Any) -> Linear | None:
    """Weight and bias of a linear layer, or of a 1x1 convolution, that is exactly that."""
    if type(module) is nn.Linear:
        return _weight_and_bias(module, nn.Linear)
    found = _weight_and_bias(module, nn.Conv2d)
    if found is None or module.groups != 1 or module.padding != (0, 0):
        return None
    return (found[0].flatten(1), found[1]) if module.kernel_size == module.stride == (1, 1) else None


def focal_kernels(levels: Any, is_gelu: Callable[[Any], bool]) -> list[torch.Tensor] | None:
    """The depthwise kernels of the focal levels, each a sequence of convolution and GELU; None if one is another."""
    if type(levels) is not nn.ModuleList:
        return None
    found: list[torch.Tensor] = []
    for level in levels._modules.values():
        if not unmodified(level, nn.Sequential):
            return None
        members = list(level._modules.values())
        kernel = _depthwise(members[0]) if len(members) == 2 and is_gelu(members[1]) else None
        if kernel is None:
            return None
        found.append(kernel)
    return found


def _depthwise(module: Any) -> torch.Tensor | None:
    """The kernel of a convolution that is depthwise, odd, with "same" padding and no bias; None if it is another."""
    if not unmodified(module, nn.Conv2d):
        return None
    side, pad = module.kernel_size, module.padding
    plain = (
        module.groups == module.in_channels == module.out_channels
        and side[0] == side[1] == 2 * pad[0] + 1
        and pad[0] == pad[1]
        and module.stride == module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and module._parameters.get("bias") is None
    )
    weight = parameter(module, "weight") if plain else None
    return weight if weight is not None and weight.shape[2:] == side else None


def of_dtype(kernels: Sequence[torch.Tensor], dtype: torch.dtype) -> bool:
    """Whether all kernels are of the dtype: our operation casts others, PyTorch's convolution refuses them."""
    for kernel in kernels:
        if kernel.dtype is not dtype:
            return False
    return True


def is_gelu(module: Any) -> bool:
    """Whether this is PyTorch's exact GELU."""
    return unmodified(module, nn.GELU) and module.approximate == "none"


def does_nothing(module: Any) -> bool:
    """Whether this is an identity, or a dropout that does not drop now."""
    if type(module) is nn.Dropout:
        return (module.p == 0.0 or not module.training) and unmodified(module, nn.Dropout)
    return unmodified(module, nn.Identity)


def check_devices(x: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
    """Raises InputError where weights are elsewhere than ``x``: for those on meta PyTorch makes up numbers."""
    for tensor in tensors:
        if tensor.device != x.device:
            raise InputError(f"the weights of a FocalNet block are on {tensor.device}, its input is on {x.device}")
