"""What named networks of dense tasks have in common: a method, on a published backbone as dense tasks use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Generic

from focalnet.errors import ConfigError, did_you_mean
from focalnet.models.backbone import FocalNetConfig
from focalnet.models.base import C, DenseConfig
from focalnet.models.variants import VARIANTS

BACKBONES = tuple(name for name, variant in VARIANTS.items() if len(variant.shape["depths"]) > 2)
"""Every FocalNet with at least three maps."""


@dataclass(frozen=True)
class DenseVariant(Generic[C]):
    """A named network.

    Args:
        method: how it finds what it finds, e.g. ``"mask_rcnn"``.
        config_class: of its configuration.
        backbone: a name of ``VARIANTS``.
        shape: keyword arguments of its ``FocalNetConfig``.
    """

    method: str
    config_class: type[C] = field(repr=False)
    backbone: str
    shape: dict[str, Any] = field(repr=False)

    def config(self, **options: Any) -> C:
        """The network's configuration; ``options`` are fields of it or of its backbone's.

        Raises:
            ConfigError: an option neither has.
        """
        own, trunk = split_options(self.config_class, options)
        return self.config_class.from_dict({"backbone": FocalNetConfig.from_dict({**self.shape, **trunk}), **own})


def split_options(cls: type[DenseConfig], options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tells a network's options from those of its backbone.

    Raises:
        ConfigError: an option neither has.
    """
    ours, theirs = ({f.name for f in fields(c)} for c in (cls, FocalNetConfig))
    for name in options:
        if name not in ours | theirs:
            known = did_you_mean(name, ours | theirs)
            raise ConfigError(f'neither {cls.__name__} nor its backbone has an option "{name}"{known}')
    return (
        {name: value for name, value in options.items() if name in ours},
        {name: value for name, value in options.items() if name not in ours},
    )


def dense_shape(backbone: str, *, four_windows: tuple[int, int, int, int] = (9, 9, 9, 9)) -> dict[str, Any]:
    """The published shape as the official dense code has it: larger first kernels, odd sizes and stems padded.

    Args:
        backbone: a name of ``VARIANTS``.
        four_windows: first kernel size of each stage; 9 for all where there are not four.
    """
    shape = {**VARIANTS[backbone].shape, "pad_to_stride": True}
    stages = len(shape["depths"])
    shape["focal_windows"] = four_windows if stages == 4 else (9,) * stages
    shape.setdefault("stem_padding", 3)
    return shape
