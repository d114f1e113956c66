"""The published architectures, and small ones of our own. Data only.

Sources: Table 17 (T, S, B, L, H), Tables 2 and 3 (overlapped, deeper and thinner), Table 16
(isotropic) of arXiv 2203.11926; ``configs/*.yaml`` of microsoft/FocalNet for L, XL and H. The deeper
and thinner ones also have overlapped embedding: only so do they match the parameter counts of Table 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """A published network.

    Args:
        shape: fields of the backbone's ``FocalNetConfig`` that differ from the defaults.
        num_classes: published number of classes; None for the default of the network's configuration.
        image_size: side in pixels of the square images it was published for; None if sizes vary.
        source: where the architecture was published.
        backbone: name of the backbone in ``VARIANTS``.
    """

    shape: dict[str, Any] = field(repr=False)
    num_classes: int | None = 1000
    image_size: int | None = 224
    source: str = "arXiv 2203.11926"
    backbone: str = ""


def _levels(levels: int, window: int = 3, stages: int = 4) -> dict[str, Any]:
    return {"focal_levels": (levels,) * stages, "focal_windows": (window,) * stages}


_SRF, _LRF = _levels(2), _levels(3)
_TINY = {"depths": (2, 2, 6, 2), "embed_dim": 96}
_SMALL = {"depths": (2, 2, 18, 2), "embed_dim": 96}
_BASE = {"depths": (2, 2, 18, 2), "embed_dim": 128}
_SIZES = {"tiny": _TINY, "small": _SMALL, "base": _BASE}
_DEEP = {
    "tiny": {"depths": (3, 3, 16, 3), "embed_dim": 64, "overlapped": True},
    "small": {"depths": (4, 4, 28, 4), "embed_dim": 64, "overlapped": True},
    "base": {"depths": (4, 4, 28, 4), "embed_dim": 96, "overlapped": True},
}
_ISO = {"tiny": 192, "small": 384, "base": 768}
_LARGE = {"depths": (2, 2, 18, 2), "overlapped": True, "post_norm": True, "layer_scale": 1e-4}
_FL3, _FL4 = _levels(3, window=5), _levels(4)


def _isotropic(dim: int) -> dict[str, Any]:
    shape = {"depths": (12,), "embed_dim": dim, "patch_size": 16, **_levels(3, stages=1)}
    # Only in the base model: its official entry point sets these in code, not in its YAML file.
    return shape | ({"post_norm": True, "layer_scale": 1e-4} if dim == 768 else {})


def _imagenet22k(dim: int, levels: dict[str, Any], size: int = 384, **more: Any) -> Variant:
    return Variant({**_LARGE, "embed_dim": dim, **levels, **more}, 21842, size, "microsoft/FocalNet configs")


def _ours(dim: int, depths: tuple[int, ...], patch: int, size: int, classes: int) -> Variant:
    shape = {"depths": depths, "embed_dim": dim, "patch_size": patch, **_levels(2, stages=len(depths))}
    if patch > 1:
        shape |= {"overlapped": True, "stem_padding": patch // 2}
    return Variant(shape, classes, size, "ours, not published in the paper")


VARIANTS: dict[str, Variant] = {
    **{f"focalnet_{n}_srf": Variant({**s, **_SRF}) for n, s in _SIZES.items()},
    **{f"focalnet_{n}_lrf": Variant({**s, **_LRF}) for n, s in _SIZES.items()},
    **{f"focalnet_{n}_srf_overlap": Variant({**s, **_SRF, "overlapped": True}) for n, s in _SIZES.items()},
    **{f"focalnet_{n}_srf_deep": Variant({**s, **_SRF}) for n, s in _DEEP.items()},
    **{f"focalnet_{n}_lrf_deep": Variant({**s, **_LRF}) for n, s in _DEEP.items()},
    **{f"focalnet_{n}_iso": Variant(_isotropic(dim)) for n, dim in _ISO.items()},
    "focalnet_large_fl3": _imagenet22k(192, _FL3),
    # The official YAML of large_fl4 alone sets normalize_modulator; weights/catalogue has the details.
    "focalnet_large_fl4": _imagenet22k(192, _FL4, normalize_modulator=True),
    "focalnet_xlarge_fl3": _imagenet22k(256, _FL3),
    "focalnet_xlarge_fl4": _imagenet22k(256, _FL4),
    "focalnet_huge_fl3": _imagenet22k(352, _LRF, 224, post_norm_in_modulation=True),
    "focalnet_huge_fl4": _imagenet22k(352, _FL4, 224, post_norm_in_modulation=True),
    "focalnet_nano": _ours(64, (2, 4, 2), patch=2, size=32, classes=10),
    "focalnet_nano_patch1": _ours(48, (2, 2), patch=1, size=8, classes=10),
    "focalnet_nano_patch4": _ours(64, (2, 4, 2), patch=4, size=64, classes=100),
}

BACKBONES = tuple(name for name, variant in VARIANTS.items() if len(variant.shape["depths"]) > 2)
"""Every FocalNet with at least three feature maps."""


def dense_variants(family: str, shape: Callable[[str], dict[str, Any]]) -> dict[str, Variant]:
    """The variants of a family of dense-prediction networks: one for each of ``BACKBONES``.

    Args:
        family: name of the family, the prefix of the variants' names.
        shape: returns the fields of ``FocalNetConfig`` for the name of a backbone.
    """
    return {f"{family}_{name}": Variant(shape(name), None, None, backbone=name) for name in BACKBONES}


def dense_shape(backbone: str, *, four_windows: tuple[int, int, int, int] = (9, 9, 9, 9)) -> dict[str, Any]:
    """A backbone's shape as in the official dense-prediction code: larger kernels, padding to the stride.

    Args:
        backbone: a key of ``VARIANTS``.
        four_windows: focal window of each of four stages; with another number of stages all are 9.
    """
    shape = {**VARIANTS[backbone].shape, "pad_to_stride": True}
    stages = len(shape["depths"])
    shape["focal_windows"] = four_windows if stages == 4 else (9,) * stages
    shape.setdefault("stem_padding", 3)
    return shape
