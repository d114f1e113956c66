"""``accelerate``: a FocalNet of timm or transformers on our kernels, in place."""

from __future__ import annotations

import importlib
import logging
import sys
from typing import TypeVar

from torch import nn

from focalnet.errors import ConfigError
from focalnet.integrations import pointwise

_log = logging.getLogger(__name__)

# Where the foreign classes are defined, and our file about them. A model can only hold classes whose module
# has been imported, so a library that is not in use is never imported here.
_LIBRARIES = {
    "timm.models.focalnet": "focalnet.integrations.fused_timm",
    "transformers.models.focalnet.modeling_focalnet": "focalnet.integrations.fused_transformers",
}

Model = TypeVar("Model", bound=nn.Module)


def accelerate(model: Model, *, undo: bool = False) -> Model:
    """Makes a FocalNet of timm or transformers, or every one inside a larger model, run on our kernels.

    The model changes in place and stays what it was: the same modules, parameters, state-dict keys and
    hooks, the same outputs within rounding; an optimizer made before keeps working. Only the class of its
    focal modulations and pointwise layers changes. Calling it again changes nothing.

    Args:
        model: any module that holds a FocalNet of timm or transformers.
        undo: give every module its own class back.

    Returns:
        ``model`` itself.

    Raises:
        ConfigError: there is no such FocalNet in ``model``.
    """
    libraries = [importlib.import_module(ours) for theirs, ours in _LIBRARIES.items() if theirs in sys.modules]
    roots = tuple(root for library in libraries for root in library.ROOTS)
    parts = _parts(model, roots) if isinstance(model, nn.Module) else []
    if not parts:
        raise ConfigError(
            f"{type(model).__name__} holds no FocalNet of timm or transformers to accelerate; "
            "models of focalnet itself run on these kernels already"
        )
    fused = {theirs: ours for library in libraries for theirs, ours in library.FUSED.items()}
    given_back = {ours: theirs for theirs, ours in (*fused.items(), *pointwise.LAYERS.items())}
    changed = 0
    for part in parts:
        kind = given_back.get(type(part)) if undo else fused.get(type(part)) or pointwise.replacement(part)
        if kind is not None:
            part.__class__ = kind
            changed += 1
    _log.info("%s %d modules of %s", "gave back" if undo else "accelerated", changed, type(model).__name__)
    return model


def _parts(model: nn.Module, roots: tuple[type[nn.Module], ...]) -> list[nn.Module]:
    """Every module of ``model`` that is one of ``roots`` or inside one, once each."""
    inside = (part for root in model.modules() if isinstance(root, roots) for part in root.modules())
    return list(dict.fromkeys(inside))
