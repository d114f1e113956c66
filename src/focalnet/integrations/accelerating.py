"""``accelerate``: a FocalNet of this library, timm or transformers with its operations fused, in place."""

from __future__ import annotations

import logging
from typing import TypeVar

from torch import nn

from focalnet.errors import ConfigError
from focalnet.kernels.fuse import fuse, fusible

_log = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)


def accelerate(model: Model, *, undo: bool = False) -> Model:
    """Makes a FocalNet of timm or transformers, or every one inside a larger model, run on our kernels.

    The model changes in place and stays what it was: the same modules, parameters, state-dict keys and
    hooks, the same outputs within rounding; an optimizer made before keeps working. Only the class of its
    focal modulations and MLPs changes. Calling it again changes nothing. Models that this library builds are
    accelerated from the start.

    Args:
        model: any module that holds a FocalNet of this library, timm or transformers.
        undo: give every module its own class back.

    Returns:
        ``model`` itself.

    Raises:
        ConfigError: there is no FocalNet in ``model``; or ``undo`` of a module that somebody has given a class of
            their own, or that ``focalnet.optimize`` has frozen.
    """
    if not isinstance(model, nn.Module) or not fusible(model):
        raise ConfigError(
            f"{type(model).__name__} holds no FocalNet of this library, timm or transformers to accelerate"
        )
    fuse(model, undo=undo)
    _log.info("%s %s", "gave its own classes back to" if undo else "accelerated", type(model).__name__)
    return model
