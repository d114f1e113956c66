"""Our classifiers and backbones for code that creates its models by ``timm.create_model``.

Importing this module registers every FocalNet under its name with ``_fused`` at the end, for timm has some of the
names: ``timm.create_model("focalnet_tiny_srf_fused", pretrained=True, num_classes=10)``. With ``features_only=True``,
the model gives a list of feature maps and has timm's ``feature_info``. A tag chooses the weights:
``"focalnet_tiny_srf_fused.ms_in1k"``.
"""

# mypy: disable-error-code="no-untyped-call"
# timm is only partly typed.

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from timm.models import register_model
from timm.models._features import FeatureInfo
from torch import nn

from focalnet import weights, zoo
from focalnet.errors import ConfigError, UnknownName
from focalnet.models.backbone import FocalNet
from focalnet.models.variants import VARIANTS

SUFFIX = "_fused"
# What timm passes to every model, and has no meaning here if it is not set.
_PASSED = ("pretrained_cfg_overlay", "cache_dir", "scriptable", "exportable", "no_jit")


class FeatureList(nn.Module):
    """A backbone that gives a list of feature maps ``(B, C, H, W)``, as timm's ``features_only=True``."""

    def __init__(self, backbone: FocalNet) -> None:
        super().__init__()
        self.backbone = backbone
        rows = [
            {"num_chs": info.channels, "reduction": info.stride, "module": f"layers.{stage}"}
            for stage, info in zip(backbone.out_indices, backbone.feature_info, strict=True)
        ]
        self.feature_info = FeatureInfo(rows, out_indices=tuple(range(len(rows))))

    def forward(self, images_BCHW: torch.Tensor) -> list[torch.Tensor]:
        return list(self.backbone(images_BCHW).values())


def create(
    name: str,
    *,
    pretrained: bool = False,
    pretrained_cfg: Any = None,
    features_only: bool = False,
    out_indices: tuple[int, ...] | None = None,
    **options: Any,
) -> nn.Module:
    """A model as timm's entry points give it.

    Args:
        name: one of ``focalnet.list_models()`` of classifiers.
        pretrained: load published weights.
        pretrained_cfg: the tag of the weights; default: the first that were published.
        features_only: give feature maps.
        out_indices: stages of the feature maps; default: all.
        options: as for ``focalnet.create_model``.

    Raises:
        UnknownName: no such weights.
        ConfigError: an option that timm has, and this library has not.
    """
    for option in _PASSED:
        if options.pop(option, None) not in (None, False):
            raise ConfigError(f"{name}{SUFFIX} does not take timm's option {option}; leave it out")
    if pretrained_cfg is not None and not isinstance(pretrained_cfg, str):
        raise ConfigError(f"{name}{SUFFIX} takes the tag of its weights as pretrained_cfg, not a configuration")
    if features_only:
        options |= {"features_only": True, "out_norms": False, "out_indices": out_indices}
    elif out_indices is not None:
        raise ConfigError("out_indices needs features_only=True")
    if pretrained:
        wanted = f"{name}.{pretrained_cfg or '*'}"
        published = weights.list_weights(wanted)
        if not published:
            raise UnknownName(f'no weights "{wanted}" were published; "focalnet models" lists all')
        model = zoo.load(published[0], **options)
        model.train()
    else:
        model = zoo.create_model(name, **options)
    return FeatureList(model) if isinstance(model, FocalNet) else model


def _register() -> None:
    module = sys.modules[__name__]
    for name in VARIANTS:

        def entry(pretrained: bool = False, *, of: str = name, **options: Any) -> nn.Module:
            return create(of, pretrained=pretrained, **options)

        entry.__name__ = entry.__qualname__ = f"{name}{SUFFIX}"
        entry.__doc__ = f"``{name}`` of focalnet; see ``create``."
        setattr(module, entry.__name__, entry)
        registered: Callable[..., Any] = register_model
        registered(entry)


_register()
