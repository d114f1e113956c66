"""timm's FocalNet: 1x1 convolutions as linear layers, downsampling at the start of a stage, own names of post-norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from focalnet.card import INTERPOLATIONS
from focalnet.errors import ConfigError
from focalnet.models.backbone import FocalNetConfig
from focalnet.models.variants import VARIANTS
from focalnet.weights.layouts.table import Hints, Layout

_BLOCK = "layers.{s}.blocks.{b}"

TIMM = Layout(
    name="timm",
    mark="stem.proj.weight",
    rows=(
        ("patch_embed.proj", "stem.proj"),
        ("patch_embed.norm", "stem.norm"),
        (f"{_BLOCK}.modulation.f", f"{_BLOCK}.modulation.f"),
        (f"{_BLOCK}.modulation.h", f"{_BLOCK}.modulation.h"),
        (f"{_BLOCK}.modulation.proj", f"{_BLOCK}.modulation.proj"),
        (f"{_BLOCK}.modulation.ln", f"{_BLOCK}.modulation.norm"),
        (f"{_BLOCK}.modulation.focal_layers.{{l}}.0", f"{_BLOCK}.modulation.focal_layers.{{l}}.0"),
        (f"{_BLOCK}.mlp.fc1", f"{_BLOCK}.mlp.fc1"),
        (f"{_BLOCK}.mlp.fc2", f"{_BLOCK}.mlp.fc2"),
        (f"{_BLOCK}.gamma_1", f"{_BLOCK}.ls1.gamma"),
        (f"{_BLOCK}.gamma_2", f"{_BLOCK}.ls2.gamma"),
        ("layers.{s}.downsample.proj", "layers.{s+1}.downsample.proj"),
        ("layers.{s}.downsample.norm", "layers.{s+1}.downsample.norm"),
        ("norm", "norm"),
        ("head", "head.fc"),
    ),
    pre_norm=((f"{_BLOCK}.norm1", f"{_BLOCK}.norm1"), (f"{_BLOCK}.norm2", f"{_BLOCK}.norm2")),
    post_norm=((f"{_BLOCK}.norm1", f"{_BLOCK}.norm1_post"), (f"{_BLOCK}.norm2", f"{_BLOCK}.norm2_post")),
    pointwise=("modulation.f", "modulation.proj", "mlp.fc1", "mlp.fc2"),
)


def check(config: FocalNetConfig) -> None:
    """Raises ConfigError for a configuration that timm does not support."""
    for name, only in (("patch_size", 4), ("patch_norm", True)):
        if getattr(config, name) != only:
            raise ConfigError(
                f"timm's FocalNet supports only {name}={only}, but this model has {name}={getattr(config, name)}; "
                f"convert it to native, microsoft or huggingface instead"
            )
    if config.overlapped and config.stem_padding != 2:
        raise ConfigError(
            "timm's FocalNet pads an overlapped stem by 2 pixels, but this model has "
            f"stem_padding={config.stem_padding}; convert it to native or microsoft instead"
        )


def hints(description: Mapping[str, Any]) -> Hints:
    """Reads the ``config.json`` of a timm model on the Hub."""
    architecture = description.get("architecture")
    trained = description.get("pretrained_cfg") or description  # which early versions of timm did not nest
    names = description.get("label_names") or trained.get("label_names") or ()
    how, remarks = preprocessing(trained)
    return Hints(
        architecture=architecture if architecture in VARIANTS else None,
        class_names=tuple(names) if len(names) == description.get("num_classes") else (),
        preprocessing=how,
        remarks=remarks,
    )


def preprocessing(trained: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What timm's ``pretrained_cfg``, or the arguments of its training script, say of how images are prepared.

    Returns:
        fields of ``Preprocessing``, and what of it cannot be done in the same way here.
    """
    found: dict[str, Any] = {}
    remarks = []
    if size := trained.get("input_size"):
        height, width = size[-2:]
        found["image_size"] = height if height == width else (height, width)
    elif size := trained.get("img_size"):
        found["image_size"] = size
    found |= {name: trained[name] for name in ("crop_pct",) if trained.get(name) is not None}
    found |= {name: tuple(trained[name]) for name in ("mean", "std") if trained.get(name) is not None}
    if (interpolation := trained.get("interpolation")) in INTERPOLATIONS:
        found["interpolation"] = interpolation
    elif interpolation not in (None, "", "random"):
        remarks.append(f"interpolation {interpolation}")
    if (mode := trained.get("crop_mode")) == "squash":
        found["fit"] = mode
    elif mode not in (None, "", "center"):
        remarks.append(f"crop_mode {mode}")
    return found, tuple(remarks)
