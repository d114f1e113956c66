"""``fuse``: swaps the classes of modules for fused ones, in place, and back."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TypeVar

from torch import nn

from focalnet.errors import ConfigError
from focalnet.kernels.fused import (
    FusedDeformableAttention,
    FusedFocalModulation,
    FusedFocalNetBlock,
    FusedMlp,
    FusedPatchEmbed,
)
from focalnet.nn import FocalModulation, FocalNetBlock, Mlp, PatchEmbed
from focalnet.nn.deformable import DeformableAttention

OURS: dict[type[nn.Module], type[nn.Module]] = {
    FocalNetBlock: FusedFocalNetBlock,
    FocalModulation: FusedFocalModulation,
    Mlp: FusedMlp,
    PatchEmbed: FusedPatchEmbed,
    DeformableAttention: FusedDeformableAttention,
}

# The modules that define the classes of other libraries, and our modules with their fused versions. A model can only
# contain classes whose module was imported, so a library that is not in use is never imported here.
_LIBRARIES = {
    "timm.models.focalnet": "focalnet.kernels.fused_timm",
    "transformers.models.focalnet.modeling_focalnet": "focalnet.kernels.fused_transformers",
}

Model = TypeVar("Model", bound=nn.Module)


def fuse(model: Model, *, undo: bool = False) -> Model:
    """Changes the class of every module of a FocalNet (of this library, timm or transformers) to its fused version.

    Only ``__class__`` changes: modules, parameters, state dict, hooks and outputs stay the same. Submodules of a fused
    module may be replaced, hooked, parametrized, sharded or quantized at any time; the unmodified path then calls them.

    The deformable attention of this library gets its fused class, too.

    Args:
        model: any module; without a FocalNet in it, nothing changes.
        undo: restore the original class of every module.

    Returns:
        ``model`` itself.

    Raises:
        ConfigError: ``undo`` finds a module whose class was changed by other code, or that is frozen.
    """
    classes = _classes()
    originals = {fused: original for original, fused in classes.items()}
    swaps: list[tuple[nn.Module, type[nn.Module]]] = []
    for module in fusible(model):
        cls = type(module)
        if undo:
            if cls not in originals and isinstance(module, tuple(originals)):
                raise ConfigError(
                    f"{cls.__name__} was made by other code on top of the fused class: first undo what made it "
                    "(fully_shard, a parametrization, focalnet.optimize)"
                )
            new = originals.get(cls)
        else:
            new = classes.get(cls)
        if new is not None:
            swaps.append((module, new))
    for module, new in swaps:
        module.__class__ = new
    return model


def fusible(model: nn.Module) -> list[nn.Module]:
    """Every module of the FocalNets in ``model``, fused or not, once each."""
    roots = (*OURS, *(root for library in _libraries() for root in library.ROOTS))
    inside = (module for root in model.modules() if isinstance(root, roots) for module in root.modules())
    return list(dict.fromkeys(inside))


def _classes() -> dict[type[nn.Module], type[nn.Module]]:
    return OURS | {original: fused for library in _libraries() for original, fused in library.FUSED.items()}


def _libraries() -> list[ModuleType]:
    return [importlib.import_module(ours) for theirs, ours in _LIBRARIES.items() if theirs in sys.modules]
