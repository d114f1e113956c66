"""Every segmenter's losses by its configuration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from focalnet.models.mask2former.loss import mask2former
from focalnet.models.upernet.loss import upernet

if TYPE_CHECKING:
    from focalnet.models.base import SegmenterConfig

Criterion = Callable[[Any, Any], dict[str, Tensor]]

_LOSSES: dict[str, Callable[..., dict[str, Tensor]]] = {"upernet": upernet, "mask2former": mask2former}


def criterion(config: SegmenterConfig) -> Criterion:
    """The losses of a segmenter: ``criterion(model.config)(model.training_outputs(images), targets)``.

    UPerNet's targets are label maps ``(B, H, W)``; Mask2Former's are one ``Segments`` for each image.
    The total is the sum of the terms; they are in float32 and carry their weights.
    """
    return partial(_LOSSES[config.method], config)
