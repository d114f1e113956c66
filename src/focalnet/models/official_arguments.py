"""Translates the official code's constructor arguments and YAML keys to fields of ``FocalNetConfig``.

Four official files define a FocalNet (``classification/focalnet.py``, the mmdet and mmseg copies of
microsoft/FocalNet, and ``models/dino/focal.py`` of FocalNet/FocalNet-DINO); they share the
argument names. Where they differ, ``translate`` says how.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from focalnet.errors import ConfigError, did_you_mean
from focalnet.models.variants import VARIANTS

Source = Literal["classification", "mmdet", "mmseg", "dino"]

SAME_NAME = (
    "patch_size in_chans embed_dim depths mlp_ratio drop_rate drop_path_rate patch_norm "
    "focal_levels focal_windows normalize_modulator out_indices"
).split()
RENAMED = {
    "use_conv_embed": "overlapped",
    "use_postln": "post_norm",
    "use_postln_in_modulation": "post_norm_in_modulation",
}
LAYER_SCALE = ("use_layerscale", "layerscale_value")
# Accepted and ignored: input sizes are free here, and the others concern the classifier or training.
NO_SHAPE = "img_size pretrain_img_size num_classes norm_layer use_checkpoint frozen_stages focal_factors".split()
IGNORED_BY_MMDET = ("post_norm", "post_norm_in_modulation", "normalize_modulator")


def translate(mapping: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """Returns the keyword arguments of ``FocalNetConfig`` for official arguments or a parsed YAML file."""
    if "MODEL" in mapping:
        return _from_yaml(mapping["MODEL"])
    dense_prediction = source != "classification"
    config: dict[str, Any] = {"drop_path_rate": 0.2 if dense_prediction else 0.1}  # the official defaults
    if dense_prediction:
        config |= {"focal_windows": (9, 9, 9, 9), "pad_to_stride": True, "out_norms": True}
        config["stem_padding"] = 2 if source == "dino" else 3
    config |= _rename(mapping)
    if source in ("mmdet", "mmseg"):
        config = {k: v for k, v in config.items() if k not in IGNORED_BY_MMDET}
    if config.get("overlapped"):
        config["patch_size"] = 4  # the official overlapped stem has stride 4, whatever patch_size is
    return config


def _rename(mapping: Mapping[str, Any]) -> dict[str, Any]:
    known = [*SAME_NAME, *RENAMED, *LAYER_SCALE, *NO_SHAPE]
    config: dict[str, Any] = {}
    for key, value in mapping.items():
        if key not in known:
            raise ConfigError(f'the official FocalNet has no argument "{key}"{did_you_mean(key, known)}')
        if key in SAME_NAME or key in RENAMED:
            config[RENAMED.get(key, key)] = tuple(value) if isinstance(value, list) else value
    if mapping.get("use_layerscale"):
        config["layer_scale"] = mapping.get("layerscale_value", 1e-4)
    return config


def _from_yaml(model: Mapping[str, Any]) -> dict[str, Any]:
    """An official YAML file omits what its entry point sets for the architecture's name (depths, patch size)."""
    name = next((str(model[k]) for k in ("TYPE", "NAME") if model.get(k) in VARIANTS), None)
    implied = VARIANTS[name].shape if name else {}
    given = _rename({key.lower(): value for key, value in model.get("FOCAL", {}).items()})
    return {**implied, **given, "drop_path_rate": model.get("DROP_PATH_RATE", 0.1)}
