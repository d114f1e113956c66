"""Creates and loads models by name: combines architectures with weights."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, overload

import torch

from focalnet import registry, weights
from focalnet.errors import CheckpointError, ConfigError, DownloadError, UnknownName, did_you_mean
from focalnet.models import Classifier, ClassifierConfig, Model, ModelConfig
from focalnet.models.backbone import FocalNet, FocalNetConfig, init_weights
from focalnet.models.backbone_shapes import TRACED, agree
from focalnet.models.base import TaskName, enough_memory, split_options
from focalnet.models.plain import with_options
from focalnet.ops.modes import on_meta
from focalnet.weights import Checkpoint, NonFiniteWeights, UnsettledSetting, dense, hub
from focalnet.weights.report import compare

Network = Model[Any, Any]

_WEIGHT_SUFFIXES = {".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pkl", ".tar"}
_RESIZABLE = ("focal_levels", "focal_windows")


def list_models(pattern: str = "*") -> list[str]:
    """Names of every architecture that matches the shell pattern, e.g. ``"*_lrf"``."""
    return [name for name in registry.names() if fnmatch.fnmatch(name, pattern)]


@overload
def create_model(name: str, *, features_only: Literal[True], **options: Any) -> FocalNet: ...
@overload
def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    features_only: Literal[False] = False,
    task: TaskName | None = None,
    num_things: int | None = None,
    **options: Any,
) -> Network: ...


@enough_memory()
def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    features_only: bool = False,
    task: TaskName | None = None,
    num_things: int | None = None,
    **options: Any,
) -> Network | FocalNet:
    """Builds an architecture with random weights; ``focalnet.load`` builds one with trained weights.

    Args:
        name: one of ``list_models()``.
        num_classes: number of classes; 0 makes a classifier return pooled features; default: as published.
        features_only: return the backbone, which gives a dict of feature maps ``{"s4": ..., "s8": ...}``.
        task: the task of a network that supports several.
        num_things: for a panoptic network, this many of the first classes are things, the others stuff.
        options: any field of ``FocalNetConfig``: ``in_chans``, ``drop_path_rate``, ``out_indices``, ...; for a
            detector or segmenter, also fields of its own configuration: ``masks``, ``max_per_image``, ...

    Raises:
        UnknownName: no such architecture.
        ConfigError: an option does not exist or is invalid, or the network does not support the task, or does not fit
            into memory.
    """
    classes = {} if num_classes is None else {"num_classes": num_classes}
    if num_things is not None and task is None:
        options["num_things"] = num_things
    config = registry.configure(name, **classes, **options)
    if features_only:
        return config.backbone.build()
    return (config if task is None else registry.for_task(config, task, num_things, name)).build()


@overload
def load(name_or_path: str | Path, *, features_only: Literal[True], **options: Any) -> FocalNet: ...
@overload
def load(
    name_or_path: str | Path,
    *,
    num_classes: int | None = None,
    features_only: Literal[False] = False,
    task: TaskName | None = None,
    num_things: int | None = None,
    **options: Any,
) -> Network: ...
@overload
def load(
    name_or_path: str | Path, *, num_classes: int | None = None, features_only: bool, **options: Any
) -> Network | FocalNet: ...


def load(
    name_or_path: str | Path,
    *,
    num_classes: int | None = None,
    features_only: bool = False,
    task: TaskName | None = None,
    num_things: int | None = None,
    **options: Any,
) -> Network | FocalNet:
    """Builds a model with trained weights, in eval mode, with its card.

    Args:
        name_or_path: a name in ``weights.list_weights()``; a checkpoint file of focalnet, the official release, timm,
            transformers, mmdet or mmseg; or a repository of the Hugging Face Hub with such a file: ``"owner/name"``,
            ``"owner/name@revision"``, ``"hf-hub:owner/name"``.
        num_classes: if it differs from the weights, the model gets a new, random head, for finetuning.
        features_only: return the backbone, without final norm and head, and with new norms of the returned
            feature maps.
        task: the task of a network that supports several.
        num_things: for a panoptic network, this many of the first classes are things, the others stuff.
        options: fields of ``FocalNetConfig`` to change; for a detector or segmenter, also fields of its own
            configuration. For other ``focal_windows`` or more ``focal_levels``, the weights are adapted as
            in the official detection code (``weights/dense.py``); for other ``in_chans`` than the 3 of the
            weights, as in timm.

    Raises:
        UnknownName: there is no such name or file.
        CheckpointError: the file cannot be read or does not fit.
        DownloadError: the weights could not be downloaded.
        ConfigError: an option does not fit the weights, or the network does not support the task, or does not fit into
            memory.
    """
    if num_things is not None and task is None:
        options["num_things"] = num_things
    checkpoint = open_checkpoint(str(name_or_path), options)
    checkpoint = weights.with_channels(checkpoint, options.get("in_chans", checkpoint.backbone.in_chans))
    for name, known in checkpoint.unsettled.items():
        warnings.warn(
            f"{name_or_path}: {name}={getattr(checkpoint.backbone, name)} is not settled: {known}. "
            f"Choose with load(..., {name}=True) or {name}=False; either silences this",
            UnsettledSetting,
            stacklevel=2,
        )
    if bad := checkpoint.not_finite():
        warnings.warn(
            f"{name_or_path}: {len(bad)} of its tensors ({', '.join(bad[:3])}{', ...' * (len(bad) > 3)}) hold NaN or "
            "infinite values, so its results are meaningless: use an earlier checkpoint",
            NonFiniteWeights,
            stacklevel=2,
        )
    whole = checkpoint.config
    if isinstance(whole, ModelConfig) and not features_only and task is not None:
        registry.for_task(whole, task, num_things, str(name_or_path))
    if isinstance(whole, ModelConfig) and not isinstance(whole, ClassifierConfig):
        if not features_only:
            return _dense(checkpoint, whole, num_classes, task, num_things, options)
        checkpoint = dataclasses.replace(
            checkpoint, config=checkpoint.backbone, state_dict=checkpoint.backbone_state_dict
        )
    config = _with_options(checkpoint, options)
    with on_meta():
        if features_only:
            model: Classifier | FocalNet = config.build()
        elif isinstance(whole, ClassifierConfig):
            classes = checkpoint.num_classes if num_classes is None else num_classes
            chosen = dataclasses.replace(whole, backbone=config, num_classes=classes)
            model = (chosen if task is None else chosen.for_task(task)).build()
        else:
            raise CheckpointError(f"{checkpoint.path}: holds a bare backbone; load it with features_only=True")
    _fill(model, checkpoint)
    model.card = checkpoint.card
    if isinstance(model, Classifier) and model.num_classes != checkpoint.num_classes:
        model.card = dataclasses.replace(checkpoint.card, class_names=(), category_ids=(), metrics={})
    return model.eval()


def _dense(
    checkpoint: Checkpoint,
    config: ModelConfig,
    num_classes: int | None,
    task: TaskName | None,
    num_things: int | None,
    options: dict[str, Any],
) -> Network:
    """A detector or segmenter with the checkpoint's weights; for another number of classes, class layers are new."""
    own, shape = split_options(type(config), options)
    classes = config.num_classes if num_classes is None else num_classes
    own["backbone"] = _with_options(checkpoint, shape, resizable=())
    config = with_options(config.with_classes(classes), own)
    if task is not None:
        config = config.for_task(task, num_things)
    new_classes = classes != checkpoint.num_classes
    with enough_memory(), torch.device("cpu") if new_classes else on_meta():  # only new layers need initial values
        model = config.build()
    initial = model.state_dict()
    new = _class_layers(checkpoint, classes) if new_classes else []
    trained = {key: tensor for key, tensor in checkpoint.state_dict.items() if key not in new}
    report = compare(trained, initial, new=new)
    changed = {name for name in own if getattr(config, name) != getattr(checkpoint.config, name)} - {"backbone"}
    cut_off = bool(report.unused) and not changed & set(config.optional_parts)
    if changed and (report.problem or cut_off):
        differences = " and ".join(
            f"{name}={getattr(checkpoint.config, name)}, not {getattr(config, name)}" for name in sorted(changed)
        )
        raise CheckpointError(
            f"{checkpoint.path}: these weights have {differences}; leave out the option, or use create_model to train "
            "another network"
        )
    if report.problem:
        raise CheckpointError(f"{checkpoint.path}: {report.problem}")
    model.load_state_dict(trained, strict=False, assign=True)
    model.card = checkpoint.card
    if new_classes:
        model.card = dataclasses.replace(checkpoint.card, class_names=(), category_ids=(), metrics={})
    model.backbone.card = model.card  # so that the backbone can be explained
    return model.eval()


def _class_layers(checkpoint: Checkpoint, classes: int) -> list[str]:
    """The tensors of a detector or segmenter whose shapes change with the number of classes, whatever else changes."""
    assert isinstance(checkpoint.config, ModelConfig)
    with on_meta():
        other = checkpoint.config.with_classes(classes).build().state_dict()
    return [key for key, tensor in checkpoint.state_dict.items() if key in other and tensor.shape != other[key].shape]


def open_checkpoint(name: str, options: Mapping[str, Any]) -> Checkpoint:
    """The weights of a name or file, of which nothing is built yet.

    Args:
        name: as for ``load``.
        options: as for ``load``; those that are part of reading weights count.

    Raises:
        UnknownName: neither a name nor a file.
        CheckpointError: a file that cannot be read.
        DownloadError: the weights could not be fetched.
    """
    # Settings that do not follow from the weights are needed to read them; others change the model afterwards.
    known = {key: options[key] for key in ("post_norm", "normalize_modulator", "stem_padding") if key in options}
    if name in weights.entries():
        return weights.fetch(name, **known)
    if "://" in name:
        raise UnknownName(
            f'"{name}" is an address: download the file and give its path, or name a repository of the Hub '
            "as owner/name"
        )
    if os.path.lexists(name) or Path(name).suffix in _WEIGHT_SUFFIXES:
        return weights.read(name, **known)
    if (repository := hub.repository(name)) is not None:
        try:
            folder = hub.fetch(repository)
        except DownloadError as error:
            if hub.PREFIX.match(name):
                raise
            missing = "cannot be read: No such file or directory"  # a path may have been meant
            raise CheckpointError(f"{name}: {missing}; nor from the Hugging Face Hub: {error}") from error
        return weights.read(folder, **known)
    if os.sep in name:
        return weights.read(name, **known)
    if name in registry.names():
        published = weights.list_weights(f"{name}.*")
        trained = f"its weights are {', '.join(published)}" if published else "no weights of it were published"
        raise UnknownName(f'"{name}" is an architecture: {trained}; create_model("{name}") builds it untrained')
    near = did_you_mean(name, weights.entries())
    raise UnknownName(f'no weights or file "{name}"{near}; "focalnet models" lists all weights')


def _with_options(
    checkpoint: Checkpoint, options: dict[str, Any], resizable: tuple[str, ...] = _RESIZABLE
) -> FocalNetConfig:
    """The checkpoint's configuration with the caller's options; refuses options that do not fit the weights."""
    has = checkpoint.backbone
    config = FocalNetConfig.from_dict({**dataclasses.asdict(has), **options})
    for name in TRACED:
        if name not in resizable and not agree(name, getattr(config, name), getattr(has, name)):
            raise ConfigError(
                f"{checkpoint.path}: these weights have {name}={getattr(has, name)}, not {getattr(config, name)}; "
                f"leave out the option, or use create_model to train another shape"
            )
    return config


def _fill(model: Classifier | FocalNet, checkpoint: Checkpoint) -> None:
    """Assigns the checkpoint's tensors to a model on meta, without a copy, and initializes new parameters."""
    tensors, expected = checkpoint.state_dict, model.state_dict()
    if isinstance(model, Classifier) and model.num_classes != checkpoint.num_classes:
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith("head.")}
    new = dense.initial(tensors, expected)
    new += [key for key in expected if key.startswith("head.") and key not in tensors]
    adapted = dense.adapt(tensors, expected)
    if problem := compare(adapted, expected, new=new).problem:
        raise CheckpointError(f"{checkpoint.path}: {problem}")
    model.load_state_dict({key: adapted[key] for key in expected if key in adapted}, strict=False, assign=True)
    for name in dict.fromkeys(key.rpartition(".")[0] for key in new):  # in order, so that they depend only on the seed
        with enough_memory():
            module = model.get_submodule(name).to_empty(device="cpu", recurse=False)
        module.reset_parameters()  # type: ignore[operator]  # a convolution, a layer norm or the head
        init_weights(module)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Trainable parameters, and multiply-accumulates of all convolutions and matrix products for one image.

    ``macs`` is None for detectors, whose cost depends on their predictions, and for segmenters.
    """

    params: int
    macs: int | None


def cost(name: str, *, num_classes: int | None = None, image_size: int | None = None) -> Cost:
    """Counts parameters and multiply-accumulates of an architecture without allocating it.

    Args:
        name: one of ``list_models()``.
        num_classes: as in ``create_model``.
        image_size: side of the square image in pixels; default: the published one.

    Raises:
        UnknownName: no such architecture.
    """
    classes = {} if num_classes is None else {"num_classes": num_classes}
    config = registry.configure(name, **classes)
    size = image_size or registry.family_of(name).variants[name].image_size
    if not isinstance(config, ClassifierConfig) or size is None:
        return Cost(_dense_params(config), None)
    with on_meta():
        model = config.build()
    return Cost(_params(model), model.macs(size, size))


def _dense_params(config: ModelConfig) -> int:
    """Counts parameters of backbone and head separately, since many networks share them and both counts are cached."""
    shape = config.backbone
    ones = (1,) * len(shape.depths)
    narrow = FocalNetConfig(
        embed_dim=shape.embed_dim, depths=ones, focal_levels=ones, focal_windows=ones, out_indices=shape.out_indices
    )
    whole, *blocks = _backbone_params(dataclasses.replace(shape, depths=ones))
    more = sum((depth - 1) * block for depth, block in zip(shape.depths, blocks, strict=True))
    return whole + more + _head_params(config.with_backbone(narrow))


@functools.cache
def _backbone_params(config: FocalNetConfig) -> tuple[int, ...]:
    """Parameters of the whole backbone, and of one block of each stage."""
    with on_meta():
        backbone = config.build()
    return _params(backbone), *(_params(stage.blocks[0]) for stage in backbone.stages)


@functools.cache
def _head_params(config: ModelConfig) -> int:
    """Parameters of everything except the backbone."""
    with on_meta():
        model = config.build()
    return _params(model) - _params(model.backbone)


def _params(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
