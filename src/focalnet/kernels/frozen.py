"""Blocks and patch embeddings that are frozen for inference: packed weights, and nothing that could change unseen.

A frozen module computes with its weights in the order oneDNN works in, without looking at anything in a pass. It shows
the original parameters under their names, read-only: whatever would write into one raises ``FrozenError``, also through
a reference from before, an optimizer or a view. Its parts are out of reach. So after any operation a frozen module is
what the plain one would be after the same, or there was an error that names the way out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, NoReturn

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_map

from focalnet.errors import InputError
from focalnet.kernels import cpu, direct, matmul, parts
from focalnet.kernels.fused import (
    FusedFocalModulation,
    FusedFocalNetBlock,
    FusedMlp,
    FusedPatchEmbed,
    block_weights,
)
from focalnet.kernels.matmul import PackedWeight
from focalnet.kernels.read_only import FrozenParameter, FrozenStorage, plain, refuse
from focalnet.kernels.registered import Named, registered
from focalnet.kernels.rows import layer_norm
from focalnet.kernels.weights import BlockWeights, Linear, Norm
from focalnet.nn.block import DropPath
from focalnet.ops import modes
from focalnet.ops.precision import without_autocast


class Frozen(nn.Module):
    """What frozen modules share. ``freeze`` makes one of a fused module, ``thaw`` the fused module of it again."""

    fused: ClassVar[type[nn.Module]]

    def check(self, x: torch.Tensor) -> None:
        """Raises unless ``x`` is what the module was frozen for."""
        if torch.is_grad_enabled() and x.requires_grad:
            refuse("a gradient was asked for")
        if modes.transformed():
            refuse("a derivative or a batch of torch.func was asked for")
        if modes.exporting():
            refuse("an export was asked for")
        if parts.changed_from_outside():
            refuse("a hook of all modules, a patched class of PyTorch or a function mode is to see every module")
        dtype, device = self.__dict__["frozen_as"]
        if x.dtype != dtype or x.device != device:
            raise InputError(
                f"this model was optimized for {str(dtype).removeprefix('torch.')} on {device}, its input is "
                f"{str(x.dtype).removeprefix('torch.')} on {x.device}"
            )

    # ---- what would change it, or see what it no longer uses ----

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__["thawed"]["_modules"]:
            refuse(f'"{name}" was to be reached')
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "training":
            refuse(f'"{name}" was to be set')
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        refuse(f'"{name}" was to be deleted')

    def get_submodule(self, target: str) -> nn.Module:
        if target:
            refuse(f'"{target}" was to be reached')
        return self

    def add_module(self, name: str, module: nn.Module | None) -> None:
        refuse(f'"{name}" was to be set')

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        refuse(f'"{name}" was to be set')

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """The parts too, so that whoever goes through all modules to change some meets an error, not a gap."""
        memo = set() if memo is None else memo
        if self not in memo:
            memo.add(self)
            yield prefix, self
            for name, part in self.named_children():
                yield from part.named_modules(memo, f"{prefix}.{name}" if prefix else name, remove_duplicate)

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        parts = self.__dict__["thawed"]["_modules"]
        yield from ((name, part) for name, part in parts.items() if part is not None)

    def apply(self, fn: Callable[[nn.Module], None]) -> Any:
        refuse("a function was to be applied to every part")

    def train(self, mode: bool = True) -> Any:
        if mode:
            refuse("training was asked for")
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        if requires_grad:
            refuse("training was asked for")
        return self

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        for parameter in self._parameters.values():
            values = plain(parameter)  # type: ignore[arg-type]
            if fn(values) is not values:
                refuse("another dtype or device was asked for")
        return self

    def _load_from_state_dict(self, *_: Any, **__: Any) -> NoReturn:
        refuse("weights were to be loaded")

    # ---- copies ----

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles are of a fused module with the same weights, which is frozen when it is there."""
        twin = nn.Module.__new__(self.fused)
        twin.__dict__.update(_copied(self.__dict__["thawed"]))
        return _frozen, (twin,)

    def extra_repr(self) -> str:
        return "frozen by focalnet.optimize"


class FrozenPart(nn.Module):
    """The class of a frozen module's parts: whoever has kept a reference to one learns that it no longer runs."""

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        refuse("a part was to be called")

    def __setattr__(self, name: str, value: Any) -> None:
        refuse(f'"{name}" of a part was to be set')

    def __delattr__(self, name: str) -> None:
        refuse(f'"{name}" of a part was to be deleted')

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        refuse("a part was to be changed, or to get a hook")

    register_forward_hook = register_forward_pre_hook = _refuse
    register_full_backward_hook = register_full_backward_pre_hook = register_backward_hook = _refuse
    register_parameter = register_buffer = register_module = add_module = _refuse
    load_state_dict = _load_from_state_dict = train = requires_grad_ = _apply = apply = __reduce_ex__ = _refuse


class _Sealed(dict[str, Any]):
    """The parts or parameters of what is frozen: some tools write into these, past the module."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        refuse("a part was to be replaced")

    __setitem__ = __delitem__ = pop = popitem = update = setdefault = clear = __ior__ = _refuse

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (dict(self),)


def _frozen_kind(kind: type[nn.Module]) -> type[nn.Module]:
    name = f"Frozen{kind.__name__}"
    return type(name, (FrozenPart, kind), {"__module__": __name__, "__doc__": f"A part that was a {kind.__name__}."})


_LEAVES: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Conv2d,
    nn.LayerNorm,
    nn.GELU,
    nn.Dropout,
    nn.Identity,
    nn.Sequential,
    nn.ModuleList,
)
_PARTS: dict[type[nn.Module], type[nn.Module]] = {
    kind: _frozen_kind(kind) for kind in (*_LEAVES, DropPath, FusedFocalModulation, FusedMlp)
}


class FrozenFocalNetBlock(Frozen, FusedFocalNetBlock):
    """A block with packed weights."""

    fused = FusedFocalNetBlock

    def forward(self, x_BHWC: torch.Tensor) -> torch.Tensor:
        self.check(x_BHWC)
        if x_BHWC.numel() == 0:
            return x_BHWC.clone()
        packed: _PackedBlock = self.__dict__["packed"]
        if torch.compiler.is_compiling():
            opaque: torch.Tensor = _opaque_block(x_BHWC, packed.name)
            return opaque
        return direct.block(x_BHWC, packed.weights)


class FrozenPatchEmbed(Frozen, FusedPatchEmbed):
    """A patch embedding with a packed weight."""

    fused = FusedPatchEmbed

    @property
    def on_meta(self) -> bool:
        return False

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        self.check(x_BCHW)
        return super().forward(x_BCHW)

    def _project(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        packed: _PackedEmbed = self.__dict__["packed"]
        with without_autocast(x_BCHW.device):  # the dtype is the one it was frozen for
            if torch.compiler.is_compiling():
                return F.conv2d(x_BCHW, packed.weight, packed.bias, self.stride, self.padding)
            return matmul.packed_convolution(
                x_BCHW, packed.packed, packed.bias, stride=self.stride, padding=self.padding
            )

    def _normalized(self, y_BHWC: torch.Tensor) -> torch.Tensor:
        norm: Norm | None = self.__dict__["packed"].norm
        return y_BHWC if norm is None else layer_norm(y_BHWC, *norm)


class _PackedBlock(Named):
    """What a block computes with; a compiled graph, which cannot hold packed weights, asks for it by name."""

    def __init__(self, block: FusedFocalNetBlock) -> None:
        super().__init__()
        weights = block_weights(block)
        if weights is None:
            raise Unfit("a part of it is not what its class says")
        norm1, modulation, norm2, mlp, gamma_1, gamma_2, post_norm = _detached(weights)
        modulation = modulation._replace(**{name: _pack(getattr(modulation, name)) for name in ("f", "h", "proj")})
        mlp = mlp._replace(fc1=_pack(mlp.fc1), fc2=_pack(mlp.fc2))
        self.like = norm1[0]
        self.weights = BlockWeights(norm1, modulation, norm2, mlp, gamma_1, gamma_2, post_norm)
        if not direct.fit(self.like, weights.tensors()):
            raise Unfit("weights of several dtypes, of one that oneDNN does not take, or kernels larger than ours")


@functools.partial(registered, "focalnet::frozen_block")
def _opaque_block(x: torch.Tensor, name: str) -> torch.Tensor:
    packed: _PackedBlock = _PackedBlock.find(name)
    return direct.block(x, packed.weights)


@_opaque_block.register_fake
def _(x: torch.Tensor, name: str) -> torch.Tensor:
    return x.new_empty(x.shape)


class _PackedEmbed:
    """What a patch embedding computes with."""

    def __init__(self, embed: FusedPatchEmbed) -> None:
        proj, norm = embed._modules.get("proj"), embed._modules.get("norm")
        geometry = ((embed.kernel,) * 2, (embed.stride,) * 2, (embed.padding,) * 2, (1, 1), 1, "zeros")
        if not (parts.unmodified(proj, nn.Conv2d) and isinstance(proj, nn.Conv2d)) or geometry != (
            proj.kernel_size, proj.stride, proj.padding, proj.dilation, proj.groups, proj.padding_mode
        ):  # fmt: skip
            raise Unfit("a part of it is not what its class says")
        weight, bias = parts.parameter(proj, "weight"), parts.parameter(proj, "bias")
        self.norm = None if norm is None else _detached(parts.norm(norm, proj.out_channels))
        if weight is None or bias is None or (norm is not None and self.norm is None):
            raise Unfit("a part of it is not what its class says")
        self.weight, self.bias = weight.detach(), bias.detach()
        self.like = self.weight
        if not direct.fit(self.like, [self.bias, *(self.norm or ())[:2]]):
            raise Unfit("weights of several dtypes, or of one that oneDNN does not take")
        self.packed = PackedWeight(self.weight, stride=embed.stride, padding=embed.padding)


class Unfit(Exception):
    """A module that cannot be frozen; the message says why."""


def freeze(modules: Iterable[nn.Module], *, alone: bool = False) -> tuple[list[nn.Module], list[str]]:
    """Freezes those of the modules that are fused blocks or patch embeddings with nothing special about them, in place.

    Args:
        modules: in a model that evaluates.
        alone: nobody else can have a view of the weights (an unpickler that has just made them still does).

    Returns:
        What was frozen; and why others were not.
    """
    packed: list[tuple[nn.Module, type[Frozen], Any]] = []
    reasons: list[str] = []
    if not (cpu.built() and matmul.ONEDNN):
        return [], []
    for module in modules:
        kind = _FROZEN.get(type(module))
        if kind is not None:
            try:
                if not alone and any(_shared(parameter) for parameter in module.parameters()):
                    raise Unfit("somebody holds a view of a weight, by which it could change")
                packed.append((module, kind, _PACKED[kind](module)))
            except Unfit as reason:
                reasons.append(str(reason))
    for module, kind, weights in packed:
        parts = [part for part in module.modules() if part is not module]
        parameters = dict(module.named_parameters())
        members = module.__dict__
        members |= {"thawed": dict(members), "packed": weights, "parts": parts}
        members["frozen_as"] = (weights.like.dtype, weights.like.device)
        members["requires_grad"] = [parameter.requires_grad for parameter in parameters.values()]
        members["_modules"], members["_parameters"] = _Sealed(), _Sealed(parameters)
        for parameter in parameters.values():
            parameter.requires_grad_(False)
        for part in parts:
            part.__dict__["thawed_class"] = type(part)
            part.__dict__.update({name: _Sealed(part.__dict__[name]) for name in ("_modules", "_parameters")})
            part.__class__ = _PARTS[type(part)]
        module.__class__ = kind
    for module, _, _ in packed:
        for parameter in module.parameters():
            parameter.untyped_storage().__class__ = FrozenStorage
            parameter.__class__ = FrozenParameter
    return [module for module, _, _ in packed], reasons


def thaw(modules: Iterable[nn.Module]) -> None:
    """Takes ``freeze`` back: the same parts and parameters, to the object."""
    for module in modules:
        if not isinstance(module, Frozen):
            continue
        members, fused = module.__dict__, module.fused
        for parameter, requires_grad in zip(module._parameters.values(), members["requires_grad"], strict=True):
            assert parameter is not None
            object.__setattr__(parameter, "__class__", nn.Parameter)
            parameter.untyped_storage().__class__ = torch.UntypedStorage
            parameter.requires_grad_(requires_grad)
        for part in members["parts"]:
            part.__dict__.update({name: dict(part.__dict__[name]) for name in ("_modules", "_parameters")})
            object.__setattr__(part, "__class__", part.__dict__.pop("thawed_class"))
        thawed = members["thawed"]
        for name in ("thawed", "packed", "parts", "frozen_as", "requires_grad"):
            del members[name]
        members |= {"_modules": thawed["_modules"], "_parameters": thawed["_parameters"]}
        object.__setattr__(module, "__class__", fused)


def _uses(x: torch.Tensor) -> int:
    return int(torch._C._storage_Use_Count(x.untyped_storage()._cdata))


_ONE_USE = _uses(torch.empty(1, device="cpu"))


def _shared(parameter: torch.Tensor) -> bool:
    """Whether another tensor or an array has a view of the parameter's memory."""
    return _uses(parameter) > _ONE_USE


def _frozen(module: nn.Module) -> nn.Module:
    freeze([module], alone=True)
    return module


def _pack(layer: Linear) -> Linear:
    weight, bias = layer
    assert isinstance(weight, torch.Tensor)
    return PackedWeight(weight), bias


def _detached(weights: Any) -> Any:
    return tree_map(lambda x: x.detach() if isinstance(x, torch.Tensor) else x, weights)


def _copied(members: dict[str, Any]) -> dict[str, Any]:
    """The ``__dict__`` of a module with its own containers, parts and parameters."""
    new = {name: value.copy() if isinstance(value, dict) else value for name, value in members.items()}
    new |= {name: dict(members[name]) for name in ("_modules", "_parameters")}
    new.pop("thawed_class", None)
    for name, parameter in members["_parameters"].items():
        new["_parameters"][name] = None if parameter is None else nn.Parameter(plain(parameter).clone(), False)
    for name, module in members["_modules"].items():
        if module is not None:
            new["_modules"][name] = child = nn.Module.__new__(module.__dict__["thawed_class"])
            child.__dict__.update(_copied(module.__dict__))
    return new


_FROZEN: dict[type[nn.Module], type[Frozen]] = {kind.fused: kind for kind in (FrozenFocalNetBlock, FrozenPatchEmbed)}
_PACKED: dict[type[Frozen], Callable[[Any], Any]] = {FrozenFocalNetBlock: _PackedBlock, FrozenPatchEmbed: _PackedEmbed}
