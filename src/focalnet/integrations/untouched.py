"""Whether another library's modules still do exactly what their class says, so that a fused kernel may stand for them.

A replaced layer (LoRA, quantization), a parametrization, a hook, a patched ``forward``: all of them must keep
working on an accelerated model. Where one is found, the modules are called one by one, as their authors wrote it.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from focalnet.layers.untouched import untouched


def kernels(levels: Iterable[nn.Module], final_act: nn.Module) -> list[torch.Tensor] | None:
    """The depthwise kernels of the levels, for ``ops.focal_context``; None where the levels must be called themselves.

    Args:
        levels: a sequence of convolution and GELU for each level.
        final_act: the activation of the global level.
    """
    found: list[torch.Tensor] = []
    for level in levels:
        conv, act = level.children()
        if not (type(conv) is nn.Conv2d and is_depthwise(conv) and is_gelu(act) and untouched(level)):
            return None
        found.append(conv.weight)
    return found if is_gelu(final_act) else None


def is_traced(x: torch.Tensor) -> bool:
    """Whether the call is recorded by torch.fx or torch.jit.trace, whose graphs must run without this library."""
    return isinstance(x, torch.fx.Proxy) or torch._C._get_tracing_state() is not None


def is_plain(*weights: torch.Tensor) -> bool:
    """Whether these are ordinary tensors: not quantized, not distributed."""
    return all(type(weight) in (torch.Tensor, nn.Parameter) for weight in weights)


def is_gelu(act: nn.Module) -> bool:
    """Whether this is the exact GELU, PyTorch's own or transformers'."""
    exact = act.approximate == "none" if type(act) is nn.GELU else getattr(act, "act", None) is F.gelu
    return exact and untouched(act)


def does_nothing(module: nn.Module) -> bool:
    """Whether this is an identity, or a dropout that does not drop now."""
    idle = type(module) is nn.Dropout and (module.p == 0.0 or not module.training)
    return (idle or type(module) is nn.Identity) and untouched(module)


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether this is the convolution of a focal level: depthwise, odd, "same" padding, no bias."""
    return (
        conv.groups == conv.in_channels == conv.out_channels
        and conv.kernel_size == (2 * int(conv.padding[0]) + 1,) * 2
        and conv.padding[0] == conv.padding[1]
        and conv.stride == conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and conv.bias is None
        and untouched(conv)
    )


def renamed(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The same function under another name: TorchScript knows a module's methods by ``__name__`` alone."""
    assert isinstance(method, types.FunctionType)
    return types.FunctionType(method.__code__, method.__globals__, name, method.__defaults__, method.__closure__)
