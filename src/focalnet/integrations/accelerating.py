"""``accelerate``: fuses the operations of FocalNets of this library, timm and transformers, in place."""

from __future__ import annotations

import logging
from typing import TypeVar

from torch import nn

from focalnet.errors import ConfigError
from focalnet.kernels.fuse import fuse, fusible

_log = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)


def accelerate(model: Model, *, undo: bool = False) -> Model:
    """Makes every FocalNet of timm or transformers in a model run on this library's kernels, in place.

    Only the classes of its focal modulations and MLPs change. Modules, parameters, state-dict keys and hooks stay the
    same, outputs stay the same up to rounding, and existing optimizers keep working. Calling it again has no effect.
    Models built by this library are accelerated from the start.

    Args:
        model: any module that contains a FocalNet of this library, timm or transformers.
        undo: restore the original class of every module.

    Returns:
        ``model`` itself.

    Raises:
        ConfigError: ``model`` contains no FocalNet; or ``undo`` finds a module whose class was changed by other code or
            that ``focalnet.optimize`` has frozen.
    """
    if not isinstance(model, nn.Module) or not fusible(model):
        raise ConfigError(
            f"{type(model).__name__} contains no FocalNet of this library, timm or transformers to accelerate"
        )
    fuse(model, undo=undo)
    _log.info("%s %s", "restored the original classes of" if undo else "accelerated", type(model).__name__)
    return model
