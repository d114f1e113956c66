"""Our classifiers and backbones for code that creates its models by ``timm.create_model``.

Importing this module registers every FocalNet under its name with ``_fused`` at the end, for timm has some of the
names: ``timm.create_model("focalnet_tiny_srf_fused", pretrained=True, num_classes=10)``. ``import focalnet`` does it
where timm is used. With ``features_only=True``, the model gives a list of feature maps and has timm's
``feature_info``. A tag chooses the weights: ``"focalnet_tiny_srf_fused.ms_in1k"``.
"""

# mypy: disable-error-code="no-untyped-call"
# timm is only partly typed.

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
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
# What timm passes to every model, with the values that change nothing; others have no meaning here.
_PASSED: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("pretrained_cfg_overlay", "cache_dir", "scriptable", "exportable", "no_jit"), (None, False)),
    "global_pool": (None, "avg"),
    "output_stride": (None, 32),
}


class FeatureList(nn.Module):
    """A backbone that gives a list of feature maps ``(B, C, H, W)``, as timm's ``features_only=True``.

    Args:
        backbone: returns the feature maps.

    Attributes:
        feature_info: timm's description of the feature maps of all stages, and which of them are returned.
        return_layers: the stages that are returned, as keys; code that wants others replaces it, as timm's may be.
    """

    output_fmt = "NCHW"

    def __init__(self, backbone: FocalNet) -> None:
        super().__init__()
        self.backbone = backbone
        rows = [
            {"num_chs": channels, "reduction": stride, "module": f"layers.{stage}"}
            for stage, (channels, stride) in enumerate(
                zip(backbone.shape.channels, backbone.shape.strides, strict=True)
            )
        ]
        self.feature_info = FeatureInfo(rows, out_indices=backbone.out_indices)
        self.return_layers = {row["module"]: str(row["index"]) for row in self.feature_info.get_dicts()}

    def forward(self, images_BCHW: torch.Tensor) -> list[torch.Tensor]:
        indices = [i for i, row in enumerate(self.feature_info.info) if row["module"] in self.return_layers]
        maps = self.backbone.forward_intermediates(images_BCHW, indices, stop_early=True, intermediates_only=True)
        assert isinstance(maps, list)
        return maps

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory in training (timm's protocol)."""
        self.backbone.set_grad_checkpointing(enable)


def create(
    name: str,
    *,
    pretrained: bool = False,
    pretrained_cfg: Any = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    **options: Any,
) -> nn.Module:
    """A model as timm's entry points give it.

    Args:
        name: one of ``focalnet.list_models()`` of classifiers.
        pretrained: load published weights.
        pretrained_cfg: the tag of the weights; default: the first that were published.
        features_only: give feature maps.
        out_indices: stages of the feature maps, from 0 or from the end, or a number for the last so many; default: all.
        options: as for ``focalnet.create_model``.

    Raises:
        UnknownName: no such weights.
        ConfigError: an option that timm has, and this library has not; or there is no such stage.
    """
    for option, neutral in _PASSED.items():
        if (value := options.pop(option, None)) not in neutral:
            raise ConfigError(f"{name}{SUFFIX} does not take timm's option {option}={value!r}; leave it out")
    if pretrained_cfg is not None and not isinstance(pretrained_cfg, str):
        raise ConfigError(f"{name}{SUFFIX} takes the tag of its weights as pretrained_cfg, not a configuration")
    if features_only:
        options.pop("num_classes", None)  # a backbone has no head
        stages = len(options.get("depths") or VARIANTS[name].shape["depths"])
        options |= {"features_only": True, "out_norms": False, "out_indices": _stages(out_indices, stages)}
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


def _stages(out_indices: int | Sequence[int] | None, stages: int) -> tuple[int, ...] | None:
    """Stages counted from 0, of timm's ``out_indices``."""
    if out_indices is None:
        return None
    wanted = range(-out_indices, 0) if isinstance(out_indices, int) else out_indices
    found = tuple(i + stages if i < 0 else i for i in wanted)
    if not found or not all(0 <= i < stages for i in found):
        raise ConfigError(f"out_indices={out_indices} must be among the {stages} stages of this FocalNet")
    return found


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
