"""The forward pass of blocks for inference, as a straight line."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from operator import is_
from typing import Any, cast

import torch
from torch import Tensor, nn

from focalnet import ops
from focalnet.layers.block import FocalNetBlock
from focalnet.layers.linear import Linear, Mlp, PointwiseConv
from focalnet.layers.modulation import FocalModulation
from focalnet.layers.norm import LayerNorm
from focalnet.layers.untouched import untouched
from focalnet.ops import backend, native
from focalnet.ops.pointwise import product
from focalnet.ops.registered import Named, registered


class StraightBlocks(Named):
    """What blocks do one after the other without gradients, without the modules in between.

    With one image at a time, a tenth of a small network's time is Python: calling modules, finding parameters, asking
    each layer which product it may take. Here that is settled beforehand. It no longer ``applies`` as soon as anything
    about the blocks has changed: a weight, a hook, a layer that was replaced. In a compiled graph it is one operation,
    for which the same is asked at each call.

    Args:
        stage: a module whose ``blocks`` are such that it ``fits``.
    """

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self._stage = weakref.ref(stage)
        blocks = _blocks(stage)
        self._straight = [_Straight(block) for block in blocks]
        # What must not change, in lists that are compared in one go: looking at it piece by piece would cost as much as
        # the calls that are saved.
        layers = [layer for block in blocks for layer in _layers(block)]
        self._weights: list[Tensor] = [layer.weight for layer in layers]
        self._dtype = self._weights[0].dtype
        self._versions = self._versions_now()
        parts = [part for block in blocks for part in (block, block.norm1, block.norm2, block.modulation, block.mlp)]
        self._parts = parts + layers + [conv for block in blocks for conv in block.modulation.convs]
        self._classes = [type(part) for part in self._parts]
        self._hooks = [hooks for part in self._parts for hooks in (part._forward_hooks, part._forward_pre_hooks)]
        levels = [level for block in blocks for level in block.modulation.focal_layers]
        self._owners: list[dict[str, Any]] = [part._modules for part in (stage, stage.get_submodule("blocks"), *levels)]
        self._owners += [of for part in self._parts for of in (part._modules, part._parameters)]
        self._members = [member for of in self._owners for member in of.values()]

    def _versions_now(self) -> list[Any]:
        return [ops.PackedWeight.state(weight) for weight in self._weights]

    @staticmethod
    def fits(stage: nn.Module) -> bool:
        """Whether the blocks are of the plain kind, their weights packed, nothing replaced, and our kernels run."""
        return native.built() and all(type(block) is FocalNetBlock and _is_plain(block) for block in _blocks(stage))

    def applies(self, x: Tensor) -> bool:
        """Whether it does for ``x`` what the blocks would now; to a compiler, whether it takes what is like ``x``."""
        compiling = torch.compiler.is_compiling() and not backend.exporting()
        return self._takes(x) and (compiling or (backend.unobserved() and type(x) is Tensor and self._as_it_was()))

    def _takes(self, x: Tensor) -> bool:
        return bool(
            not torch.is_grad_enabled()
            and x.dtype == self._dtype
            and x.device.type == "cpu"
            and x.numel() > 0
            and backend.current() != "eager"
            and not torch.is_autocast_enabled("cpu")
            and torch.backends.mkldnn.enabled
        )

    def _as_it_was(self) -> bool:
        return bool(
            not any(self._hooks)
            and all(map(is_, map(type, self._parts), self._classes))
            and all(map(is_, chain.from_iterable(map(dict.values, self._owners)), self._members))
            and self._versions_now() == self._versions
        )

    def __call__(self, x_BHWC: Tensor) -> Tensor:
        """Returns ``(B, H, W, C)``."""
        if torch.compiler.is_compiling():
            opaque: Tensor = _opaque_blocks(x_BHWC, self.name)
            return opaque
        x = x_BHWC
        for block in self._straight:
            x = block(x, mine=x is not x_BHWC)
        return x

    def now(self, x: Tensor) -> Tensor:
        """What the blocks do now: straight, or by themselves where something about them has changed."""
        if self._as_it_was():
            return self(x)
        for block in _blocks(cast(nn.Module, self._stage())):
            x = block(x)
        return x


@partial(registered, "focalnet::blocks")
def _opaque_blocks(x: Tensor, name: str) -> Tensor:
    straight: StraightBlocks = StraightBlocks.find(name)
    return straight.now(x)


@_opaque_blocks.register_fake
def _(x: Tensor, name: str) -> Tensor:
    return x.new_empty(x.shape)


class _Straight:
    """The operations of one block."""

    def __init__(self, block: FocalNetBlock) -> None:
        modulation = block.modulation
        self.norm1, self.norm2 = ((norm.weight, norm.bias, norm.eps) for norm in (block.norm1, block.norm2))
        self.f, self.h, self.proj, self.fc1, self.fc2 = map(_product, _layers(block))
        self.kernels = [conv.weight for conv in modulation.convs]
        self.split = (modulation.dim, modulation.dim, modulation.levels + 1)
        self.focal_context: Callable[..., Tensor] = native.load().forward

    def __call__(self, x: Tensor, *, mine: bool) -> Tensor:
        """Returns ``(B, H, W, C)``; ``mine`` says that ``x`` may be overwritten."""
        query, context, gates = self.f(ops.layer_norm(x, *self.norm1)).split_with_sizes(self.split, -1)
        modulator = self.h(self.focal_context(context, gates, self.kernels))
        x = self.proj(query * modulator, plus=x, over=mine)
        hidden = self.fc1(ops.layer_norm(x, *self.norm2), then="gelu")
        return self.fc2(hidden, plus=x, over=True)


def _product(layer: Linear | PointwiseConv) -> Callable[..., Tensor]:
    weight, bias, packed = layer.weight.detach().flatten(1), layer.bias, cast(ops.PackedWeight, layer.packed)

    def call(x: Tensor, **then: Any) -> Tensor:
        return product(x, packed.unchanged(weight, x), bias, **then)

    return call


def _is_plain(block: FocalNetBlock) -> bool:
    modulation, mlp = block.modulation, block.mlp
    if type(modulation) is not FocalModulation or type(mlp) is not Mlp or not all(map(untouched, block.modules())):
        return False
    own = all(type(layer) in (Linear, PointwiseConv) and layer.packed is not None for layer in _layers(block))
    plain = block.gamma_1 is None and not block.post_norm and modulation.ln is None and not modulation.normalize
    like = modulation.f.weight.new_empty(1, 1, 1, modulation.levels + 1)
    kernels = native.why_not(like, like, [conv.weight for conv in modulation.convs]) is None
    return own and plain and kernels and type(block.norm1) is type(block.norm2) is LayerNorm


def _blocks(stage: nn.Module) -> list[FocalNetBlock]:
    return list(cast(Iterable[FocalNetBlock], stage.get_submodule("blocks")))


def _layers(block: FocalNetBlock) -> list[Any]:
    modulation, mlp = block.modulation, block.mlp
    return [modulation.f, modulation.h, modulation.proj, mlp.fc1, mlp.fc2]
