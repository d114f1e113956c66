"""Hugging Face transformers' ``FocalNetForImageClassification`` and its ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from focalnet.errors import ConfigError
from focalnet.models import ClassifierConfig
from focalnet.models.backbone import FocalNetConfig
from focalnet.weights.layouts.table import Hints, Layout

_OURS = "layers.{s}.blocks.{b}"
_THEIRS = "focalnet.encoder.stages.{s}.layers.{b}"
_NORMS = ((f"{_OURS}.norm1", f"{_THEIRS}.norm1"), (f"{_OURS}.norm2", f"{_THEIRS}.norm2"))

HUGGINGFACE = Layout(
    name="huggingface",
    mark="focalnet.embeddings.patch_embeddings.projection.weight",
    rows=(
        ("patch_embed.proj", "focalnet.embeddings.patch_embeddings.projection"),
        ("patch_embed.norm", "focalnet.embeddings.norm"),
        (f"{_OURS}.modulation.f", f"{_THEIRS}.modulation.projection_in"),
        (f"{_OURS}.modulation.h", f"{_THEIRS}.modulation.projection_context"),
        (f"{_OURS}.modulation.proj", f"{_THEIRS}.modulation.projection_out"),
        (f"{_OURS}.modulation.ln", f"{_THEIRS}.modulation.layernorm"),
        (f"{_OURS}.modulation.focal_layers.{{l}}.0", f"{_THEIRS}.modulation.focal_layers.{{l}}.0"),
        (f"{_OURS}.mlp.fc1", f"{_THEIRS}.mlp.fc1"),
        (f"{_OURS}.mlp.fc2", f"{_THEIRS}.mlp.fc2"),
        (f"{_OURS}.gamma_1", f"{_THEIRS}.gamma_1"),
        (f"{_OURS}.gamma_2", f"{_THEIRS}.gamma_2"),
        ("layers.{s}.downsample.proj", "focalnet.encoder.stages.{s}.downsample.projection"),
        ("layers.{s}.downsample.norm", "focalnet.encoder.stages.{s}.downsample.norm"),
        ("norm", "focalnet.layernorm"),
        ("head", "classifier"),
    ),
    pre_norm=_NORMS,
    post_norm=_NORMS,
)

_SAME_NAME = ("embed_dim", "depths", "focal_levels", "focal_windows", "mlp_ratio", "normalize_modulator")
_RENAMED = {
    "num_channels": "in_chans",
    "use_conv_embed": "overlapped",
    "use_post_layernorm": "post_norm",
    "use_post_layernorm_in_modulation": "post_norm_in_modulation",
    "hidden_dropout_prob": "drop_rate",
    "drop_path_rate": "drop_path_rate",
}


def check(config: FocalNetConfig) -> None:
    """Raises ConfigError for a configuration that transformers does not support."""
    if not config.patch_norm:
        raise ConfigError("transformers' FocalNet always has patch_norm; convert to native or microsoft instead")
    if config.overlapped and (config.patch_size, config.stem_padding) != (4, 2):
        raise ConfigError(
            "transformers' FocalNet supports overlapped patches only with patch_size=4 and stem_padding=2; "
            "convert to native or microsoft instead"
        )


def hints(description: Mapping[str, Any]) -> Hints:
    """Reads settings from the ``config.json`` of a transformers FocalNet."""
    settings = {ours: description[theirs] for theirs, ours in _RENAMED.items() if theirs in description}
    if description.get("use_layerscale"):
        settings["layer_scale"] = description.get("layerscale_value", 1e-4)
    settings["post_norm"] = bool(description.get("use_post_layernorm", False))  # a file may omit defaults
    settings["normalize_modulator"] = bool(description.get("normalize_modulator", False))
    names = {int(index): str(name) for index, name in (description.get("id2label") or {}).items()}
    generic = all(name == f"LABEL_{index}" for index, name in names.items())
    return Hints(settings=settings, class_names=() if generic else tuple(names[i] for i in sorted(names)))


def describe(config: ClassifierConfig, class_names: tuple[str, ...] = ()) -> dict[str, Any]:
    """The ``config.json`` that ``AutoModelForImageClassification.from_pretrained`` needs next to the weights."""
    shape = config.backbone
    names = class_names or tuple(f"LABEL_{i}" for i in range(config.num_classes))
    return {
        "model_type": "focalnet",
        "architectures": ["FocalNetForImageClassification"],
        **{name: getattr(shape, name) for name in _SAME_NAME},
        **{theirs: getattr(shape, ours) for theirs, ours in _RENAMED.items()},
        "patch_size": shape.patch_size,
        "hidden_sizes": [*shape.channels[1:], shape.channels[-1]],
        "use_layerscale": shape.layer_scale is not None,
        "layerscale_value": 1e-4 if shape.layer_scale is None else shape.layer_scale,
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }
