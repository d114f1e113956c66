"""Hugging Face transformers' ``FocalNetForImageClassification`` and its ``config.json``."""

from __future__ import annotations

import math
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


_SEVERAL = "multi_label_classification"  # transformers' problem_type where an image can have several classes


def hints(description: Mapping[str, Any]) -> Hints:
    """Reads settings from the ``config.json`` of a transformers FocalNet."""
    settings = {ours: description[theirs] for theirs, ours in _RENAMED.items() if theirs in description}
    if description.get("use_layerscale"):
        settings["layer_scale"] = description.get("layerscale_value", 1e-4)
    settings["post_norm"] = bool(description.get("use_post_layernorm", False))  # a file may omit defaults
    settings["normalize_modulator"] = bool(description.get("normalize_modulator", False))
    names = {int(index): str(name) for index, name in (description.get("id2label") or {}).items()}
    generic = all(name == f"LABEL_{index}" for index, name in names.items())
    return Hints(
        settings=settings,
        class_names=() if generic else tuple(names[i] for i in sorted(names)),
        multi_label=description.get("problem_type") == _SEVERAL,
    )


_LARGE = 384  # from this size on, ConvNeXt's images are not cropped, but resized to a square
_RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def preprocessing(description: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the ``preprocessor_config.json`` of transformers says of how images are prepared.

    Returns:
        fields of ``Preprocessing``, and what of it cannot be done in the same way here.

    Raises:
        ValueError, TypeError, KeyError: it has values that cannot be.
    """
    found: dict[str, Any] = {}
    remarks = []
    resized, crop = _sides(description.get("size")), _sides(description.get("crop_size"))
    squares = len({*crop}) == len({*resized}) == 1
    short = resized[0] if resized and (len(resized) == 1 or description.get("do_center_crop", False)) else None
    if description.get("crop_pct") is not None and resized:
        found["image_size"], found["crop_pct"] = resized[0], float(description["crop_pct"])
        if str(description.get("image_processor_type", "")).startswith("ConvNext") and resized[0] >= _LARGE:
            found["crop_pct"], found["fit"] = 1.0, "squash"
    elif crop and description.get("do_center_crop", True):
        found["image_size"] = crop[0] if len(set(crop)) == 1 else (crop[0], crop[1])
        found["crop_pct"] = _crop_pct(min(crop), short) if short else 1.0
    elif resized:
        found["image_size"] = resized[0] if len(set(resized)) == 1 else (resized[0], resized[1])
        found["crop_pct"] = 1.0
    if not description.get("do_resize", True):
        remarks.append("no resizing")
    elif len(resized) == 2 and "crop_pct" not in description:
        found["fit"] = "squash"
    if "fit" in found and crop and description.get("do_center_crop", True) and not (short and squares):
        remarks.append(f"size {resized[0]} x {resized[1]} before a crop of {crop[0]} x {crop[-1]}")
    if (resample := description.get("resample")) in _RESAMPLE:
        found["interpolation"] = _RESAMPLE[resample]
    elif resample is not None:
        remarks.append(f"resample {resample}")
    white = 255 * float(description.get("rescale_factor") or 1 / 255) if description.get("do_rescale", True) else 255.0
    if not description.get("do_normalize", True):
        found["mean"], found["std"] = (0.0,) * 3, (1 / white,) * 3
    elif description.get("image_mean") is not None and description.get("image_std") is not None:
        for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
            values = description[theirs]
            values = values if isinstance(values, (list, tuple)) else (values,) * 3
            found[ours] = tuple(float(value) / white if white != 1 else float(value) for value in values)
    return found, tuple(remarks)


def _sides(size: Any) -> tuple[int, ...]:
    """The short side alone, or height and width; empty where nothing is said."""
    if size is None:
        return ()
    if isinstance(size, Mapping):
        names = ("shortest_edge",) if "shortest_edge" in size else ("height", "width")
        return tuple(int(size[name]) for name in names) if set(names) <= size.keys() else ()
    return tuple(map(int, size)) if isinstance(size, (list, tuple)) else (int(size),)


def _crop_pct(crop: int, short: int) -> float:
    """The share that makes ``floor(crop / share)`` the short side."""
    share = min(crop / short, 1.0)
    while int(crop / share) < short:
        share = math.nextafter(share, 0.0)
    return share


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
        **({"problem_type": _SEVERAL} if config.multi_label else {}),
    }
