"""The official release (``classification/focalnet.py`` of microsoft/FocalNet): our own names."""

from __future__ import annotations

from focalnet.weights.layouts.table import Layout

_BLOCK = "layers.{s}.blocks.{b}"
_NAMES = (
    "patch_embed.proj",
    "patch_embed.norm",
    f"{_BLOCK}.modulation.f",
    f"{_BLOCK}.modulation.h",
    f"{_BLOCK}.modulation.proj",
    f"{_BLOCK}.modulation.ln",
    f"{_BLOCK}.modulation.focal_layers.{{l}}.0",
    f"{_BLOCK}.mlp.fc1",
    f"{_BLOCK}.mlp.fc2",
    f"{_BLOCK}.gamma_1",
    f"{_BLOCK}.gamma_2",
    "layers.{s}.downsample.proj",
    "layers.{s}.downsample.norm",
    "norm",
    "head",
)
_NORMS = (f"{_BLOCK}.norm1", f"{_BLOCK}.norm2")

MICROSOFT = Layout(
    name="microsoft",
    mark="patch_embed.proj.weight",
    rows=tuple((name, name) for name in _NAMES),
    pre_norm=tuple((name, name) for name in _NORMS),
    post_norm=tuple((name, name) for name in _NORMS),
)
