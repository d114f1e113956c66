"""The detectors the paper published, on every FocalNet that has the maps for them. Data only.

Sources: sections 4.2 and appendix of arXiv 2203.11926, ``detection/configs`` of microsoft/FocalNet. First kernel sizes
are 9 for Mask R-CNN, and 11, 9, 9, 7 by stage for the others; odd sizes and overlapped stems are padded as there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from focalnet.backbones import VARIANTS, FocalNetConfig
from focalnet.errors import ConfigError, did_you_mean
from focalnet.models.atss import ATSSConfig
from focalnet.models.base import DetectorConfig
from focalnet.models.rcnn import CascadeRCNNConfig, MaskRCNNConfig
from focalnet.models.sparse_rcnn import SparseRCNNConfig

METHODS: dict[str, type[DetectorConfig]] = {
    "mask_rcnn": MaskRCNNConfig,
    "cascade_mask_rcnn": CascadeRCNNConfig,
    "atss": ATSSConfig,
    "sparse_rcnn": SparseRCNNConfig,
}


@dataclass(frozen=True)
class DetectorVariant:
    """A named detector.

    Args:
        method: a name of ``METHODS``.
        backbone: a name of ``VARIANTS``.
        shape: keyword arguments of its ``FocalNetConfig``.
    """

    method: str
    backbone: str
    shape: dict[str, Any] = field(repr=False)

    def config(self, **options: Any) -> DetectorConfig:
        """The detector's configuration; ``options`` are fields of it or of its backbone's.

        Raises:
            ConfigError: an option neither has.
        """
        cls = METHODS[self.method]
        own, trunk = split_options(cls, options)
        return cls.from_dict({"backbone": FocalNetConfig.from_dict({**self.shape, **trunk}), **own})


def split_options(cls: type[DetectorConfig], options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tells a detector's options from those of its backbone.

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


def _shape(method: str, backbone: str) -> dict[str, Any]:
    shape = {**VARIANTS[backbone].shape, "pad_to_stride": True}
    stages = len(shape["depths"])
    shape["focal_windows"] = (9,) * stages if method == "mask_rcnn" or stages < 4 else (11, 9, 9, 7)
    shape.setdefault("stem_padding", 3)
    if method == "atss" and stages == 4:
        shape["out_indices"] = (1, 2, 3)
    return shape


DETECTORS = {
    f"{method}_{backbone}": DetectorVariant(method, backbone, _shape(method, backbone))
    for method in METHODS
    for backbone, variant in VARIANTS.items()
    if len(variant.shape["depths"]) > 2
}
