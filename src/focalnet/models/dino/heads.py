"""What is predicted of a query: a class, and how its reference box is to change.

B batch, Q queries, C channels, N classes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from focalnet.models.dino.config import DINOConfig

_PRIOR = 0.01  # share of queries that hold an object of a class, as the classifier assumes at the start
_EPS = 1e-3  # the published one: references stay so far from the edges of the image


def inverse_sigmoid(boxes: Tensor) -> Tensor:
    """Logits of numbers in [0, 1], which stay 0.001 from both ends."""
    boxes = boxes.clamp(0, 1)
    return (boxes.clamp(min=_EPS) / (1 - boxes).clamp(min=_EPS)).log()


class Heads(nn.Module):
    """A class head and a box head for each decoder layer, or one for all; the last ones are the encoder's."""

    def __init__(self, config: DINOConfig) -> None:
        super().__init__()
        classes = 1 if config.shared_class_head else config.decoder_layers
        boxes = 1 if config.shared_box_head else config.decoder_layers
        self.cls_branches = nn.ModuleList(_class_head(config) for _ in range(classes + 1))
        self.reg_branches = nn.ModuleList(_box_head(config) for _ in range(boxes + 1))

    def classes(self, x_BQC: Tensor, layer: int) -> Tensor:
        """Logits ``(B, Q, N)``, float32, of the queries after a layer; of the encoder's memory where it is -1."""
        out: Tensor = _of(self.cls_branches, layer)(x_BQC).float()
        return out

    def boxes(self, x_BQC: Tensor, layer: int) -> Tensor:
        """What is added to the logits of the references, ``(B, Q, 4)``, float32; ``layer`` as for classes."""
        out: Tensor = _of(self.reg_branches, layer)(x_BQC).float()
        return out


def _of(branches: nn.ModuleList, layer: int) -> nn.Module:
    return branches[-1] if layer < 0 else branches[min(layer, len(branches) - 2)]


def _class_head(config: DINOConfig) -> nn.Linear:
    head = nn.Linear(config.channels, config.num_classes)
    nn.init.constant_(head.bias, -math.log((1 - _PRIOR) / _PRIOR))
    return head


def _box_head(config: DINOConfig) -> nn.Sequential:
    channels = config.channels
    last = nn.Linear(channels, 4)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    hidden = (nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels), nn.ReLU())
    return nn.Sequential(*hidden, last)
