"""Reading what configurations and state dicts of mmdet's detectors and mmseg's segmenters have in common."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from focalnet.errors import ConfigError
from focalnet.models.backbone import FocalNetConfig
from focalnet.nn.fpn import FPNConfig
from focalnet.samples import IGNORED

_NO_SHAPE = ("type", "pretrained", "init_cfg")  # keys of a backbone that say nothing of the network


def expect(part: Mapping[str, Any], where: str, *types: str) -> Mapping[str, Any]:
    """The part itself, if its ``type`` is one of those a detector here can have.

    Raises:
        ConfigError: it is not; the message names the part.
    """
    if part.get("type") not in types:
        raise ConfigError(f'{where}: type "{part.get("type")}" is not supported, only {" or ".join(types)}')
    return part


def backbone(model: Mapping[str, Any]) -> FocalNetConfig:
    """The FocalNet of a configuration; mmdet's and mmseg's copies of it are the same."""
    part = expect(model["backbone"], "backbone", "FocalNet")
    return FocalNetConfig.from_official({k: v for k, v in part.items() if k not in _NO_SHAPE}, source="mmdet")


def neck(model: Mapping[str, Any]) -> FPNConfig:
    """The pyramid of a detector's configuration."""
    part = expect(model["neck"], "neck", "FPN")
    extra, levels = part.get("add_extra_convs", False), part["num_outs"]
    if part.get("start_level", 0) != 0 or part.get("relu_before_extra_convs", False):
        raise ConfigError("neck: start_level and relu_before_extra_convs are not supported; choose out_indices instead")
    if levels > len(part["in_channels"]) and extra not in (False, "on_output"):
        raise ConfigError(f'neck: add_extra_convs="{extra}" is not supported, only "on_output" or none')
    return FPNConfig(channels=part["out_channels"], levels=levels, extra="conv" if extra == "on_output" else "pool")


def anchor_scale(generator: Mapping[str, Any], backbone: FocalNetConfig, levels: int) -> float:
    """Side of an anchor in cells; there is one scale, and the strides must be the pyramid's.

    Raises:
        ConfigError: something else.
    """
    finest = backbone.strides[(backbone.out_indices or (0,))[0]]
    strides = [finest * 2**i for i in range(levels)]
    if list(generator["strides"]) != strides:
        raise ConfigError(f"anchor_generator: strides {generator['strides']} are not the pyramid's {strides}")
    scales = [generator["octave_base_scale"]] if "octave_base_scale" in generator else list(generator["scales"])
    if len(scales) != 1 or generator.get("scales_per_octave", 1) != 1:
        raise ConfigError(f"anchor_generator: one scale is supported, not {scales}")
    return float(scales[0])


def stds(coder: Mapping[str, Any]) -> tuple[float, ...]:
    """What the box coder divides by.

    Raises:
        ConfigError: its means are not zero.
    """
    if any(coder.get("target_means", ())):
        raise ConfigError(f"bbox_coder: target_means {coder['target_means']} must be zero")
    return tuple(coder["target_stds"])


def threshold(value: float) -> float | None:
    """A threshold; mmdet writes "none" as -1."""
    return None if value < 0 else value


def unweighted(loss: Mapping[str, Any], where: str, *types: str) -> None:
    """Checks a loss that has no options here.

    Raises:
        ConfigError: it is another one, or its weight is not 1.
    """
    if expect(loss, where, *types).get("loss_weight", 1.0) != 1.0:
        raise ConfigError(f"{where}: loss_weight={loss['loss_weight']} is not supported, only 1")


def nms_threshold(settings: Mapping[str, Any]) -> float:
    """The IoU threshold of hard suppression (``iou_thr`` in old files)."""
    nms = expect(settings["nms"], "test_cfg.nms", "nms")
    return float(nms["iou_threshold"] if "iou_threshold" in nms else nms["iou_thr"])


def semantic(head: Mapping[str, Any], where: str, **fixed: Any) -> None:
    """Checks what a head of mmseg may not differ in here.

    Args:
        head: its configuration.
        where: its name, for the message.
        fixed: options of it that have one value here; what is left out is taken to have it.

    Raises:
        ConfigError: something differs; the message names it.
    """
    if head["norm_cfg"]["type"] not in ("BN", "SyncBN"):
        raise ConfigError(f'{where}: norm "{head["norm_cfg"]["type"]}" is not supported, only BN or SyncBN')
    if head.get("ignore_index", IGNORED) != IGNORED:
        raise ConfigError(f"{where}: ignore_index={head['ignore_index']} is not supported, only {IGNORED}")
    for name, value in {"align_corners": False, **fixed}.items():
        if head.get(name, value) != value:
            raise ConfigError(f"{where}: {name}={head[name]} is not supported, only {value}")
    loss = expect(head["loss_decode"], f"{where}.loss_decode", "CrossEntropyLoss")
    for name in ("use_sigmoid", "class_weight", "avg_non_ignore"):
        if loss.get(name):
            raise ConfigError(f"{where}.loss_decode: {name} is not supported")


def same(values: Sequence[Any], what: str) -> Any:
    """The one value they all have.

    Raises:
        ConfigError: they differ.
    """
    if any(value != values[0] for value in values):
        raise ConfigError(f"{what} must be the same in every part, not {list(values)}")
    return values[0]


def neck_of(tensors: Mapping[str, Tensor], published: FPNConfig) -> FPNConfig:
    """The pyramid that the shapes of tensors describe; what they do not tell is as published."""
    convs = count(tensors, r"neck\.fpn_convs\.\d+\.conv\.weight")
    levels = convs if published.extra == "conv" else max(published.levels, convs)  # pooled levels have no weights
    return replace(published, channels=tensors["neck.fpn_convs.0.conv.weight"].shape[0], levels=levels)


def count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many keys match a regular expression."""
    return sum(re.fullmatch(pattern, key) is not None for key in tensors)
