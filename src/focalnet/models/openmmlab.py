"""Shared code for reading configurations and state dicts of mmdet and mmseg."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from focalnet.errors import ConfigError
from focalnet.models.backbone import FocalNetConfig
from focalnet.nn.fpn import FPNConfig
from focalnet.ops.rois import FINEST_CELLS
from focalnet.samples import IGNORED

_NO_SHAPE = ("type", "pretrained", "init_cfg")  # keys of a backbone that do not affect its architecture


class _Part(dict[str, Any]):
    """A mapping of a configuration that knows where it stands, so that a missing key is named."""

    def __init__(self, mapping: Mapping[str, Any], where: str) -> None:
        super().__init__({key: _named(value, f"{where}.{key}") for key, value in mapping.items()})
        self.where = where

    def __getitem__(self, key: str) -> Any:
        if (value := self.get(key)) is None:
            raise ConfigError(f"{self.where}: {key} is missing; give the whole `model` of the resolved configuration")
        return value


def _named(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        return _Part(value, where)
    if isinstance(value, list | tuple):
        return type(value)(_named(item, f"{where}[{i}]") for i, item in enumerate(value))
    return value


def whole(model: Mapping[str, Any], *types: str) -> Mapping[str, Any]:
    """Returns a copy of a whole configuration; reading a key by ``[]`` that is missing or None is an error.

    Args:
        model: the ``model`` of a configuration of mmdet or mmseg.
        types: one of which its ``type`` has to be.

    Raises:
        ConfigError: it is another type; or, on reading, a key is missing: the message names it.
    """
    return expect(_Part(model, "model"), "model", *types)


def expect(module: Mapping[str, Any], where: str, *types: str) -> Mapping[str, Any]:
    """Returns the configuration of a module, after checking that its ``type`` is one of ``types``.

    Raises:
        ConfigError: it is another type; the message names the module by ``where``.
    """
    if not isinstance(module, Mapping):
        raise ConfigError(f"{where}: {module!r:.60} is not a mapping with a type")
    if module.get("type") not in types:
        raise ConfigError(f'{where}: type "{module.get("type")}" is not supported, only {" or ".join(types)}')
    return module


def backbone(model: Mapping[str, Any]) -> FocalNetConfig:
    """The backbone's configuration. The copies of FocalNet for mmdet and mmseg are the same."""
    arguments = expect(model["backbone"], "backbone", "FocalNet")
    return FocalNetConfig.from_official({k: v for k, v in arguments.items() if k not in _NO_SHAPE}, source="mmdet")


def neck(model: Mapping[str, Any]) -> FPNConfig:
    """The feature pyramid of a detector's configuration."""
    fpn = expect(model["neck"], "neck", "FPN")
    extra, levels = fpn.get("add_extra_convs", False), fpn["num_outs"]
    if fpn.get("start_level", 0) != 0 or fpn.get("relu_before_extra_convs", False):
        raise ConfigError("neck: start_level and relu_before_extra_convs are not supported; choose out_indices instead")
    if levels > len(fpn["in_channels"]) and extra not in (False, "on_output"):
        raise ConfigError(f'neck: add_extra_convs="{extra}" is not supported, only "on_output" or none')
    return FPNConfig(channels=fpn["out_channels"], levels=levels, extra="conv" if extra == "on_output" else "pool")


def anchor_scale(generator: Mapping[str, Any], backbone: FocalNetConfig, levels: int) -> float:
    """Side of the anchors, in cells of their level.

    Raises:
        ConfigError: there is more than one scale, or the strides are not the feature pyramid's.
    """
    finest = backbone.strides[(backbone.out_indices or (0,))[0]]
    strides = [finest * 2**i for i in range(levels)]
    if list(generator["strides"]) != strides:
        raise ConfigError(f"anchor_generator: strides {generator['strides']} are not the pyramid's {strides}")
    scales = [generator["octave_base_scale"]] if "octave_base_scale" in generator else list(generator["scales"])
    if len(scales) != 1 or generator.get("scales_per_octave", 1) != 1:
        raise ConfigError(f"anchor_generator: one scale is supported, not {scales}")
    return float(scales[0])


def roi_extractor(
    roi_head: Mapping[str, Any], name: str, backbone: FocalNetConfig, *, size: int, samples: int = 0
) -> int:
    """Number of pyramid levels that a RoI extractor pools from.

    Args:
        roi_head: holds the extractor's configuration.
        name: of the extractor.
        backbone: configuration of the backbone.
        size: side of the grid of a pooled region.
        samples: sampling points per bin and axis; 0 for the bin's size.

    Raises:
        ConfigError: it pools in another way, or from other levels.
    """
    where = f"roi_head.{name}"
    extractor = expect(roi_head[name], where, "SingleRoIExtractor")
    layer, strides = expect(extractor["roi_layer"], f"{where}.roi_layer", "RoIAlign"), extractor["featmap_strides"]
    expected = {"output_size": size, "sampling_ratio": samples, "pool_mode": "avg", "aligned": True}
    for option, value in {"sampling_ratio": 0, **layer}.items():
        if option in expected and value not in (expected[option], [expected[option]] * 2):
            raise ConfigError(f"{where}.roi_layer: {option}={value} is not supported, only {expected[option]}")
    finest = backbone.strides[(backbone.out_indices or (0,))[0]]
    if list(strides) != [finest * 2**i for i in range(len(strides))]:
        raise ConfigError(f"{where}: featmap_strides {list(strides)} are not the pyramid's, from {finest}")
    scale = extractor.get("finest_scale", 56)
    if scale != FINEST_CELLS * finest:
        raise ConfigError(
            f"{where}: finest_scale={scale} is not supported with a finest stride of {finest}, only "
            f"{FINEST_CELLS * finest}: a region of twice that size belongs to the second level"
        )
    return len(strides)


def stds(coder: Mapping[str, Any]) -> tuple[float, ...]:
    """Standard deviations of the box coder.

    Raises:
        ConfigError: the means of the box coder are not zero.
    """
    if any(coder.get("target_means", ())):
        raise ConfigError(f"bbox_coder: target_means {coder['target_means']} must be zero")
    return tuple(coder["target_stds"])


def threshold(value: float) -> float | None:
    """A threshold or None, which mmdet writes as -1."""
    return None if value < 0 else value


def unweighted(loss: Mapping[str, Any], where: str, *types: str) -> None:
    """Checks the type of a loss and that its weight is 1.

    Raises:
        ConfigError: the type or the weight differs.
    """
    if expect(loss, where, *types).get("loss_weight", 1.0) != 1.0:
        raise ConfigError(f"{where}: loss_weight={loss['loss_weight']} is not supported, only 1")


def nms_threshold(settings: Mapping[str, Any]) -> float:
    """The IoU threshold of hard NMS (``iou_thr`` in old files)."""
    nms = expect(settings["nms"], "test_cfg.nms", "nms")
    return float(nms["iou_threshold"] if "iou_threshold" in nms else nms["iou_thr"])


def semantic(head: Mapping[str, Any], where: str, **fixed: Any) -> None:
    """Checks the options of an mmseg head that only one value is supported for.

    Args:
        head: configuration of the head.
        where: name of the head, for the message.
        fixed: further options and their supported values; missing options are not checked.

    Raises:
        ConfigError: an option has another value; the message names it.
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
    """Returns the common value of all ``values``.

    Raises:
        ConfigError: the values differ.
    """
    if any(value != values[0] for value in values):
        raise ConfigError(f"{what} must all be equal, not {list(values)}")
    return values[0]


def neck_of(tensors: Mapping[str, Tensor], published: FPNConfig) -> FPNConfig:
    """Infers the feature pyramid from the shapes of tensors; other fields are those of ``published``."""
    convs = count(tensors, r"neck\.fpn_convs\.\d+\.conv\.weight")
    levels = (
        convs if published.extra == "conv" else max(published.levels, convs)
    )  # pooled levels have no weights to count
    return replace(published, channels=tensors["neck.fpn_convs.0.conv.weight"].shape[0], levels=levels)


def count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """Number of keys that match a regular expression."""
    return sum(re.fullmatch(pattern, key) is not None for key in tensors)
