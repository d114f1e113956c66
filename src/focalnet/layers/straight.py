"""A block's forward pass for inference, as a straight line."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from focalnet import ops
from focalnet.layers.linear import Linear, Mlp, PointwiseConv
from focalnet.layers.modulation import FocalModulation
from focalnet.layers.norm import LayerNorm
from focalnet.layers.untouched import untouched
from focalnet.ops import backend, native
from focalnet.ops.pointwise import product

if TYPE_CHECKING:
    from focalnet.layers.block import FocalNetBlock


class StraightBlock:
    """What a block does without gradients, one operation after the other, without the modules in between.

    With one image at a time, a tenth of a small network's time is Python: calling modules, finding parameters, asking
    each layer which product it may take. Here that is settled beforehand. It no longer ``applies`` as soon as anything
    about the block has changed: a weight, a hook, a layer that was replaced. It is neither copied nor saved with its
    block.
    """

    def __init__(self, block: FocalNetBlock) -> None:
        modulation, mlp = block.modulation, block.mlp
        layers: list[Any] = [modulation.f, modulation.h, modulation.proj, mlp.fc1, mlp.fc2]
        self._weights: list[Tensor] = [layer.weight for layer in layers]
        self._state = [ops.PackedWeight.state(weight) for weight in self._weights]
        self._products: list[tuple[Tensor, Tensor]] = [(layer.packed.packed, layer.bias) for layer in layers]
        self._norms = [(norm.weight, norm.bias, norm.eps) for norm in (block.norm1, block.norm2)]
        self._kernels = [conv.weight for conv in modulation.convs]
        self._split = (modulation.dim, modulation.dim, modulation.levels + 1)
        self._dtype = modulation.f.weight.dtype
        self._focal_context: Callable[..., Tensor] = native.load().forward
        parts = list(block.modules())
        self._hooks = [hooks for part in parts for hooks in (part._forward_hooks, part._forward_pre_hooks)]
        self._classes = [(part, type(part)) for part in parts]
        members: list[dict[str, Any]] = [of for part in parts for of in (part._modules, part._parameters)]
        self._members = [(of, name, member) for of in members for name, member in of.items()]

    @staticmethod
    def fits(block: FocalNetBlock) -> bool:
        """Whether the block is of the plain kind, with packed weights, nothing in it replaced, and our kernels run."""
        modulation, mlp = block.modulation, block.mlp
        if type(modulation) is not FocalModulation or type(mlp) is not Mlp or not all(map(untouched, block.modules())):
            return False
        layers: list[nn.Module] = [modulation.f, modulation.h, modulation.proj, mlp.fc1, mlp.fc2]
        own = all(type(layer) in (Linear, PointwiseConv) and layer.packed is not None for layer in layers)
        plain = block.gamma_1 is None and not block.post_norm and modulation.ln is None and not modulation.normalize
        like = modulation.f.weight.new_empty(1, 1, 1, modulation.levels + 1)
        kernels = native.why_not(like, like, [conv.weight for conv in modulation.convs]) is None and native.built()
        return own and plain and kernels and type(block.norm1) is type(block.norm2) is LayerNorm

    def applies(self, x: Tensor) -> bool:
        """Whether it does for ``x`` and now what the block would."""
        return bool(
            not torch.is_grad_enabled()
            and backend.unobserved()
            and type(x) is Tensor
            and x.dtype == self._dtype
            and x.device.type == "cpu"
            and x.numel() > 0
            and backend.current() != "eager"
            and not torch.is_autocast_enabled("cpu")
            and torch.backends.mkldnn.enabled
            and not any(self._hooks)
            and all(type(part) is kind for part, kind in self._classes)
            and all(of.get(name) is member for of, name, member in self._members)
            and [ops.PackedWeight.state(weight) for weight in self._weights] == self._state
        )

    def __call__(self, x_BHWC: Tensor) -> Tensor:
        """Returns ``(B, H, W, C)``."""
        x, (norm1, norm2), (f, h, proj, fc1, fc2) = x_BHWC, self._norms, self._products
        query, context, gates = product(ops.layer_norm(x, *norm1), *f).split_with_sizes(self._split, -1)
        modulator = product(self._focal_context(context, gates, self._kernels), *h)
        x = product(query * modulator, *proj, plus=x)
        hidden = product(ops.layer_norm(x, *norm2), *fc1, "gelu")
        return product(hidden, *fc2, plus=x)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()
