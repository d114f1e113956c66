"""Every detector's losses by its configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from focalnet.models.atss.loss import atss
from focalnet.models.rcnn.loss import rcnn
from focalnet.models.sparse_rcnn.loss import sparse_rcnn
from focalnet.samples import ObjectTarget

if TYPE_CHECKING:
    from focalnet.models.base import DetectorConfig

Criterion = Callable[[Any, Sequence[ObjectTarget]], dict[str, Tensor]]

_LOSSES: dict[str, Callable[..., dict[str, Tensor]]] = {"rcnn": rcnn, "atss": atss, "sparse_rcnn": sparse_rcnn}


def criterion(config: DetectorConfig) -> Criterion:
    """The losses of a detector: ``criterion(model.config)(model.training_outputs(...), targets)``.

    The total is the sum of the terms; they are in float32 and carry their weights.
    """
    return partial(_LOSSES[config.method], config)
