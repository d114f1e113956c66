"""Blocks and patch embeddings frozen for inference, with packed weights.

A frozen module computes with weights packed for oneDNN and does not check its submodules in each pass. Its parameters
keep their names but are read-only: any write raises ``FrozenError``, also through an older reference, an optimizer or a
view. Its submodules are not accessible. So every operation on a frozen module has the same effect as on the original
module, or raises an error that names the solution.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, NoReturn

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_map

from focalnet.errors import InputError
from focalnet.kernels import cpu, direct, int8, matmul, submodules
from focalnet.kernels.cpu.arguments import Steps
from focalnet.kernels.fused import (
    FusedFocalModulation,
    FusedFocalNetBlock,
    FusedMlp,
    FusedPatchEmbed,
    block_weights,
)
from focalnet.kernels.int8 import Int8Weight
from focalnet.kernels.matmul import PackedWeight
from focalnet.kernels.read_only import FrozenParameter, FrozenStorage, plain, refuse
from focalnet.kernels.registered import Named, registered
from focalnet.kernels.rowwise import layer_norm
from focalnet.kernels.weights import BlockWeights, Linear, Norm
from focalnet.nn.block import DropPath
from focalnet.ops import modes
from focalnet.ops.precision import without_autocast


class Frozen(nn.Module):
    """Base class of frozen modules. ``freeze`` turns a fused module into a frozen one, ``thaw`` reverts it."""

    fused: ClassVar[type[nn.Module]]

    def check(self, x: torch.Tensor) -> None:
        """Raises an error unless the module can run on ``x`` in the current mode."""
        if torch.is_grad_enabled() and x.requires_grad:
            refuse("the input requires a gradient")
        if modes.transformed():
            refuse("torch.func and forward-mode AD are not supported")
        if modes.exporting():
            refuse("cannot export it")
        if submodules.changed_from_outside():
            refuse("a global hook, a patched PyTorch class or a mode intercepts every module")
        dtype, device = self.__dict__["frozen_as"]
        if x.dtype != dtype or x.device != device:
            raise InputError(
                f"this model was optimized for {str(dtype).removeprefix('torch.')} on {device}, its input is "
                f"{str(x.dtype).removeprefix('torch.')} on {x.device}"
            )

    # ---- access that would change the module or see outdated state ----

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__["thawed"]["_modules"]:
            refuse(f'cannot access "{name}"')
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "training":
            refuse(f'cannot set "{name}"')
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        refuse(f'cannot delete "{name}"')

    def get_submodule(self, target: str) -> nn.Module:
        if target:
            refuse(f'cannot access "{target}"')
        return self

    def add_module(self, name: str, module: nn.Module | None) -> None:
        refuse(f'cannot set "{name}"')

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        refuse(f'cannot set "{name}"')

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Includes the submodules, so that code that changes them raises an error instead of missing them."""
        memo = set() if memo is None else memo
        if self not in memo:
            memo.add(self)
            yield prefix, self
            for name, module in self.named_children():
                yield from module.named_modules(memo, f"{prefix}.{name}" if prefix else name, remove_duplicate)

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        children = self.__dict__["thawed"]["_modules"]
        yield from ((name, child) for name, child in children.items() if child is not None)

    def apply(self, fn: Callable[[nn.Module], None]) -> Any:
        refuse("cannot apply a function to its submodules")

    def train(self, mode: bool = True) -> Any:
        if mode:
            refuse("cannot train it")
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        if requires_grad:
            refuse("cannot train it")
        return self

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        for parameter in self._parameters.values():
            values = plain(parameter)  # type: ignore[arg-type]
            if fn(values) is not values:
                refuse("cannot change its dtype or device")
        return self

    def _load_from_state_dict(self, *_: Any, **__: Any) -> NoReturn:
        refuse("cannot load weights")

    # ---- copies ----

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles contain the fused module, which is frozen again when it is created."""
        fused = nn.Module.__new__(self.fused)
        fused.__dict__.update(_copied(self.__dict__["thawed"]))
        return _refrozen, (fused,)

    def extra_repr(self) -> str:
        return "frozen by focalnet.optimize"


class FrozenSubmodule(nn.Module):
    """Class of the submodules of a frozen module: using one through an older reference raises an error."""

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        refuse("cannot call a submodule")

    def __setattr__(self, name: str, value: Any) -> None:
        refuse(f'cannot set "{name}" of a submodule')

    def __delattr__(self, name: str) -> None:
        refuse(f'cannot delete "{name}" of a submodule')

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        refuse("cannot change or hook a submodule")

    register_forward_hook = register_forward_pre_hook = _refuse
    register_full_backward_hook = register_full_backward_pre_hook = register_backward_hook = _refuse
    register_parameter = register_buffer = register_module = add_module = _refuse
    load_state_dict = _load_from_state_dict = train = requires_grad_ = _apply = apply = __reduce_ex__ = _refuse


class _ReadOnlyDict(dict[str, Any]):
    """Read-only dict of submodules or parameters, since some tools write into it directly."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        refuse("cannot replace a submodule or parameter")

    __setitem__ = __delitem__ = pop = popitem = update = setdefault = clear = __ior__ = _refuse

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (dict(self),)


def _frozen_class(cls: type[nn.Module]) -> type[nn.Module]:
    name = f"Frozen{cls.__name__}"
    return type(name, (FrozenSubmodule, cls), {"__module__": __name__, "__doc__": f"A frozen {cls.__name__}."})


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
_FROZEN_SUBMODULES: dict[type[nn.Module], type[nn.Module]] = {
    cls: _frozen_class(cls) for cls in (*_LEAVES, DropPath, FusedFocalModulation, FusedMlp)
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

    def _check_dtype(self, x_BCHW: torch.Tensor) -> None:
        """``check`` has done so."""

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
    """The packed weights of a block. Compiled graphs cannot hold packed weights and look them up by name.

    Linear layers that the attribute ``int8_steps`` of the block names compute in int8.
    """

    def __init__(self, block: FusedFocalNetBlock) -> None:
        super().__init__()
        weights = block_weights(block)
        if weights is None:
            raise Unfit("one of its submodules was modified")
        norm1, modulation, norm2, mlp, gamma_1, gamma_2, post_norm = _detached(weights)
        self.like = norm1[0]
        if not direct.fit(self.like, weights.tensors()):
            raise Unfit("its weights have several dtypes, a dtype that oneDNN does not support, or too large kernels")
        steps: dict[str, Steps] = block.__dict__.get("int8_steps", {})
        if steps and (reason := int8.why_not()) is not None:
            raise Unfit(reason)

        def packed(group: Any, *names: str) -> Any:
            return group._replace(**{name: _pack(getattr(group, name), steps.get(name)) for name in names})

        modulation, mlp = packed(modulation, "f", "h", "proj"), packed(mlp, "fc1", "fc2")
        self.weights = BlockWeights(norm1, modulation, norm2, mlp, gamma_1, gamma_2, post_norm)


@functools.partial(registered, "focalnet::frozen_block")
def _opaque_block(x: torch.Tensor, name: str) -> torch.Tensor:
    packed: _PackedBlock = _PackedBlock.find(name)
    return direct.block(x, packed.weights)


@_opaque_block.register_fake
def _(x: torch.Tensor, name: str) -> torch.Tensor:
    return x.new_empty(x.shape)


class _PackedEmbed:
    """The packed weights of a patch embedding."""

    def __init__(self, embed: FusedPatchEmbed) -> None:
        proj, norm = embed._modules.get("proj"), embed._modules.get("norm")
        geometry = ((embed.kernel,) * 2, (embed.stride,) * 2, (embed.padding,) * 2, (1, 1), 1, "zeros")
        if not (submodules.unmodified(proj, nn.Conv2d) and isinstance(proj, nn.Conv2d)) or geometry != (
            proj.kernel_size, proj.stride, proj.padding, proj.dilation, proj.groups, proj.padding_mode
        ):  # fmt: skip
            raise Unfit("one of its submodules was modified")
        weight, bias = submodules.parameter(proj, "weight"), submodules.parameter(proj, "bias")
        self.norm = None if norm is None else _detached(submodules.norm(norm, proj.out_channels))
        if weight is None or bias is None or (norm is not None and self.norm is None):
            raise Unfit("one of its submodules was modified")
        self.weight, self.bias = weight.detach(), bias.detach()
        self.like = self.weight
        if not direct.fit(self.like, [self.bias, *(self.norm or ())[:2]]):
            raise Unfit("its weights have several dtypes, or a dtype that oneDNN does not support")
        self.packed = PackedWeight(self.weight, stride=embed.stride, padding=embed.padding)


class Unfit(Exception):
    """Raised for a module that cannot be frozen; the message says why."""


def freeze(modules: Iterable[nn.Module], *, unshared: bool = False) -> tuple[list[nn.Module], list[str]]:
    """Freezes the unmodified fused blocks and patch embeddings among ``modules``, in place.

    Args:
        modules: modules in evaluation mode.
        unshared: skip the check that no other tensor shares the weights' memory, which an unpickler that has just
            created them would fail.

    Returns:
        The frozen modules, and the reasons why others were not frozen.
    """
    packed: list[tuple[nn.Module, type[Frozen], Any]] = []
    reasons: list[str] = []
    if not (cpu.built() and matmul.ONEDNN):
        return [], []
    for module in modules:
        frozen_class = _FROZEN.get(type(module))
        if frozen_class is not None:
            try:
                if not unshared and any(_shared(parameter) for parameter in module.parameters()):
                    raise Unfit(
                        "a weight shares its memory with another tensor or array, through which it could change"
                    )
                packed.append((module, frozen_class, _PACKED[frozen_class](module)))
            except Unfit as reason:
                reasons.append(str(reason))
    for module, frozen_class, weights in packed:
        children = [child for child in module.modules() if child is not module]
        parameters = dict(module.named_parameters())
        members = module.__dict__
        members |= {"thawed": dict(members), "packed": weights, "submodules": children}
        members["frozen_as"] = (weights.like.dtype, weights.like.device)
        members["requires_grad"] = [parameter.requires_grad for parameter in parameters.values()]
        members["_modules"], members["_parameters"] = _ReadOnlyDict(), _ReadOnlyDict(parameters)
        for parameter in parameters.values():
            parameter.requires_grad_(False)
        for child in children:
            child.__dict__["thawed_class"] = type(child)
            child.__dict__.update({name: _ReadOnlyDict(child.__dict__[name]) for name in ("_modules", "_parameters")})
            child.__class__ = _FROZEN_SUBMODULES[type(child)]
        module.__class__ = frozen_class
    for module, _, _ in packed:
        for parameter in module.parameters():
            parameter.untyped_storage().__class__ = FrozenStorage
            parameter.__class__ = FrozenParameter
    return [module for module, _, _ in packed], reasons


def thaw(modules: Iterable[nn.Module]) -> None:
    """Reverts ``freeze``, restoring the same submodule and parameter objects."""
    for module in modules:
        if not isinstance(module, Frozen):
            continue
        members, fused = module.__dict__, module.fused
        for parameter, requires_grad in zip(module._parameters.values(), members["requires_grad"], strict=True):
            assert parameter is not None
            object.__setattr__(parameter, "__class__", nn.Parameter)
            parameter.untyped_storage().__class__ = torch.UntypedStorage
            parameter.requires_grad_(requires_grad)
        for child in members["submodules"]:
            child.__dict__.update({name: dict(child.__dict__[name]) for name in ("_modules", "_parameters")})
            object.__setattr__(child, "__class__", child.__dict__.pop("thawed_class"))
        thawed = members["thawed"]
        for name in ("thawed", "packed", "submodules", "frozen_as", "requires_grad"):
            del members[name]
        members |= {"_modules": thawed["_modules"], "_parameters": thawed["_parameters"]}
        object.__setattr__(module, "__class__", fused)


def _uses(x: torch.Tensor) -> int:
    return int(torch._C._storage_Use_Count(x.untyped_storage()._cdata))


_ONE_USE = _uses(torch.empty(1, device="cpu"))


def _shared(parameter: torch.Tensor) -> bool:
    """Whether another tensor or an array shares the parameter's memory."""
    return _uses(parameter) > _ONE_USE


def _refrozen(module: nn.Module) -> nn.Module:
    frozen, reasons = freeze([module], unshared=True)
    if not frozen and "int8_steps" in module.__dict__:
        reason = (reasons or ["the CPU kernels or oneDNN are missing"])[0]
        warnings.warn(
            f"a copy of a block in int8 computes in the dtype of its weights: {reason}", RuntimeWarning, stacklevel=2
        )
    return module


def _pack(layer: Linear, steps: Steps | None) -> Linear:
    weight, bias = layer
    assert isinstance(weight, torch.Tensor)
    return PackedWeight(weight) if steps is None else Int8Weight(weight, bias, steps), bias


def _detached(weights: Any) -> Any:
    return tree_map(lambda x: x.detach() if isinstance(x, torch.Tensor) else x, weights)


def _copied(members: dict[str, Any]) -> dict[str, Any]:
    """Copies the ``__dict__`` of a frozen module, with containers, submodules and parameters of its own."""
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


_FROZEN: dict[type[nn.Module], type[Frozen]] = {cls.fused: cls for cls in (FrozenFocalNetBlock, FrozenPatchEmbed)}
_PACKED: dict[type[Frozen], Callable[[Any], Any]] = {FrozenFocalNetBlock: _PackedBlock, FrozenPatchEmbed: _PackedEmbed}
