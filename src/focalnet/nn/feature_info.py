"""What a neck or head is told of each map it gets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FeatureInfo:
    """One map of a backbone: its name (``"s8"`` for stride 8), channels, and stride in pixels."""

    name: str
    channels: int
    stride: int
