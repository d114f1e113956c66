"""``fuse``: swaps the classes of plain modules for fused ones, in place, and back."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TypeVar

from torch import nn

from focalnet.errors import ConfigError
from focalnet.kernels.fused import FusedFocalModulation, FusedFocalNetBlock, FusedMlp, FusedPatchEmbed
from focalnet.nn import FocalModulation, FocalNetBlock, Mlp, PatchEmbed

OURS: dict[type[nn.Module], type[nn.Module]] = {
    FocalNetBlock: FusedFocalNetBlock,
    FocalModulation: FusedFocalModulation,
    Mlp: FusedMlp,
    PatchEmbed: FusedPatchEmbed,
}

# Where the classes of other libraries are defined, and our file about them. A model can only hold classes whose module
# has been imported, so a library that is not in use is never imported here.
_LIBRARIES = {
    "timm.models.focalnet": "focalnet.kernels.fused_timm",
    "transformers.models.focalnet.modeling_focalnet": "focalnet.kernels.fused_transformers",
}

Model = TypeVar("Model", bound=nn.Module)


def fuse(model: Model, *, undo: bool = False) -> Model:
    """Gives every module of a FocalNet (of this library, timm or transformers) its fused class, or its own back.

    Only ``__class__`` changes: modules, parameters, state dict, hooks and outputs stay. A module inside a fused one may
    be replaced, hooked, parametrized, sharded or quantized at any time; it is then called as its authors wrote it.

    Args:
        model: any module that holds a FocalNet; one that holds none stays as it is.
        undo: give every module its own class back.

    Returns:
        ``model`` itself.

    Raises:
        ConfigError: undoing what somebody has put a class of their own on, or what is frozen.
    """
    classes = _classes()
    back = {ours: theirs for theirs, ours in classes.items()}
    swaps: list[tuple[nn.Module, type[nn.Module]]] = []
    for part in fusible(model):
        kind = type(part)
        if undo:
            if kind not in back and isinstance(part, tuple(back)):
                raise ConfigError(
                    f"a {kind.__name__} is not ours alone: take back what made that class (fully_shard, a "
                    "parametrization, focalnet.optimize) before the fused class below it"
                )
            new = back.get(kind)
        else:
            new = classes.get(kind)
        if new is not None:
            swaps.append((part, new))
    for part, new in swaps:
        part.__class__ = new
    return model


def fusible(model: nn.Module) -> list[nn.Module]:
    """Every module of a FocalNet that ``model`` is or holds, fused or not, once each."""
    roots = (*OURS, *(root for library in _libraries() for root in library.ROOTS))
    inside = (part for root in model.modules() if isinstance(root, roots) for part in root.modules())
    return list(dict.fromkeys(inside))


def _classes() -> dict[type[nn.Module], type[nn.Module]]:
    return OURS | {theirs: ours for library in _libraries() for theirs, ours in library.FUSED.items()}


def _libraries() -> list[ModuleType]:
    return [importlib.import_module(ours) for theirs, ours in _LIBRARIES.items() if theirs in sys.modules]
