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

    The mode that ``torch.set_default_device`` leaves on sees nothing but new tensors.
    """
    return bool(_global_hooks()) or _patched_or_moded()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def changed_from_outside() -> bool:
    """Whether something may change what every module gives; as what ``observed`` asks, but for PyTorch's own tracker.

    ``ModuleTracker``, which ``FlopCounterMode`` uses, notes the names of modules and changes nothing.
    """
    others = [hook for hook in _global_hooks() if not isinstance(getattr(hook, "__self__", None), ModuleTracker)]
    return bool(others) or _patched_or_moded()


def _global_hooks() -> list[Any]:
    tables = (
        _globals._global_forward_hooks,
        _globals._global_forward_pre_hooks,
        _globals._global_backward_hooks,
        _globals._global_backward_pre_hooks,
    )
    return [hook for table in tables for hook in table.values()]


def _patched_or_moded() -> bool:
    if nn.Module.__call__ is not _CALL:
        return True
    for kind, forward in _FORWARDS:
        if kind.forward is not forward:
            return True
    stack: Any = _get_current_function_mode_stack() if torch._C._len_torch_function_stack() else ()  # type: ignore[no-untyped-call]
    return any(type(mode) is not DeviceContext for mode in stack)


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


def norm(module: Any, dim: int) -> Norm | None:
    """Weight, bias and eps of a layer norm of the last axis that is exactly that."""
    if not unmodified(module, nn.LayerNorm) or module.normalized_shape != (dim,):
        return None
    weight, bias = parameter(module, "weight"), parameter(module, "bias")
    return None if weight is None or bias is None else (weight, bias, module.eps)


def linear(module: Any) -> Linear | None:
    """Weight and bias of a linear layer, or of a 1x1 convolution, that is exactly that."""
    kind = type(module)
    if kind is nn.Conv2d:
        pointwise = module.kernel_size == module.stride == (1, 1) and module.padding == (0, 0) and module.groups == 1
        if not pointwise:
            return None
    elif kind is not nn.Linear:
        return None
    if not unmodified(module, kind):
        return None
    weight, bias = parameter(module, "weight"), parameter(module, "bias")
    if weight is None or bias is None:
        return None
    return (weight if kind is nn.Linear else weight.flatten(1)), bias


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
