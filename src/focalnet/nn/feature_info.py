"""Description of a feature map, from which necks and heads are built."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FeatureInfo:
    """A feature map's name (``"s8"`` for stride 8), channels, and stride in pixels."""

    name: str
    channels: int
    stride: int
