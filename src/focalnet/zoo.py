"""Models by name: the only place where architectures meet weights."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import os
import warnings
from pathlib import Path
from typing import Any, Literal, overload

import torch

from focalnet import registry, weights
from focalnet.errors import CheckpointError, ConfigError, UnknownName, did_you_mean
from focalnet.models import Classifier, ClassifierConfig, Model, ModelConfig
from focalnet.models.backbone import FocalNet, FocalNetConfig, init_weights
from focalnet.models.backbone_shapes import TRACED, agree
from focalnet.models.base import TaskName, split_options
from focalnet.weights import Checkpoint, NonFiniteWeights, UnsettledSetting, dense
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
        num_classes: outputs of the classifier, 0 returns pooled features; or kinds of objects or pixels that the
            detector or segmenter tells apart; default: as published.
        features_only: return the backbone instead, which gives a dict of feature maps ``{"s4": ..., "s8": ...}``.
        task: what the network is for; one that can do several then gives the results of this one.
        num_things: of a panoptic network: so many of the first classes are objects, the others stuff.
        options: any field of ``FocalNetConfig``: ``in_chans``, ``drop_path_rate``, ``out_indices``, ...; of a
            detector or segmenter also those of its own configuration: ``masks``, ``max_per_image``, ...

    Raises:
        UnknownName: no such architecture.
        ConfigError: an option that does not exist or cannot work, or a network that cannot do the task.
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
        name_or_path: a name of ``weights.list_weights()``, or a checkpoint file of ours, of the official
            release, timm, transformers, mmdet or mmseg.
        num_classes: another number than the weights have gives a new, random head, for finetuning.
        features_only: return the backbone instead: final norm and head are left out, the norms of the
            returned feature maps are new.
        task: what the network is for; one that can do several then gives the results of this one.
        num_things: of a panoptic network: so many of the first classes are objects, the others stuff.
        options: fields of ``FocalNetConfig`` to change. Other ``focal_windows`` or more ``focal_levels``
            adapt the weights as the official detection code does (``weights/dense.py``). Of a detector or
            segmenter also fields of its own configuration.

    Raises:
        UnknownName: neither a name nor a file.
        CheckpointError: a file that cannot be read or does not fit.
        DownloadError: the weights could not be fetched.
        ConfigError: an option that does not fit the weights, or a network that cannot do the task.
    """
    if num_things is not None and task is None:
        options["num_things"] = num_things
    checkpoint = _open(str(name_or_path), options)
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
            "infinite values, so its results will be meaningless: take an earlier checkpoint of the training",
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
    with torch.device("meta"):
        if features_only:
            model: Classifier | FocalNet = config.build()
        elif isinstance(whole, ClassifierConfig):
            classes = checkpoint.num_classes if num_classes is None else num_classes
            model = ClassifierConfig(backbone=config, num_classes=classes).build()
        else:
            raise CheckpointError(f"{checkpoint.path}: holds a bare backbone; load it with features_only=True")
    _fill(model, checkpoint)
    model.card = checkpoint.card
    if isinstance(model, Classifier) and model.num_classes != checkpoint.num_classes:
        model.card = dataclasses.replace(checkpoint.card, class_names=(), metrics={})
    return model.eval()


def _dense(
    checkpoint: Checkpoint,
    config: ModelConfig,
    num_classes: int | None,
    task: TaskName | None,
    num_things: int | None,
    options: dict[str, Any],
) -> Network:
    """A detector or segmenter with the checkpoint's weights; with other classes, the layers that name them are new."""
    own, shape = split_options(type(config), options)
    classes = config.num_classes if num_classes is None else num_classes
    own["backbone"] = _with_options(checkpoint, shape, resizable=())
    config = dataclasses.replace(config.with_classes(classes), **own)  # type: ignore[type-var]
    if task is not None:
        config = config.for_task(task, num_things)
    new_classes = classes != checkpoint.num_classes
    with torch.device("cpu" if new_classes else "meta"):  # only new layers need initial values
        model = config.build()
    wanted = model.state_dict()
    other = [key for key, t in checkpoint.state_dict.items() if key in wanted and t.shape != wanted[key].shape]
    new = other if new_classes else []
    given = {key: tensor for key, tensor in checkpoint.state_dict.items() if key not in new}
    if problem := compare(given, wanted, new=new).problem:
        raise CheckpointError(f"{checkpoint.path}: {problem}")
    model.load_state_dict(given, strict=False, assign=True)
    model.card = checkpoint.card
    if new_classes:
        model.card = dataclasses.replace(checkpoint.card, class_names=(), metrics={})
    model.backbone.card = model.card  # so that what it looks at can be explained
    return model.eval()


def _open(name: str, options: dict[str, Any]) -> Checkpoint:
    # What leaves no trace in the weights is part of reading them; the rest changes the model afterwards.
    known = {key: options[key] for key in ("post_norm", "normalize_modulator", "stem_padding") if key in options}
    if name in weights.entries():
        return weights.fetch(name, **known)
    if os.path.lexists(name) or Path(name).suffix in _WEIGHT_SUFFIXES or os.sep in name:
        return weights.read(name, **known)
    if name in registry.names():
        published = weights.list_weights(f"{name}.*")
        trained = f"its weights are {', '.join(published)}" if published else "no weights of it were published"
        raise UnknownName(f'"{name}" is an architecture: {trained}; create_model("{name}") builds it untrained')
    near = did_you_mean(name, weights.entries())
    raise UnknownName(f'no weights "{name}", nor a file of that name{near}; "focalnet models" lists all')


def _with_options(
    checkpoint: Checkpoint, options: dict[str, Any], resizable: tuple[str, ...] = _RESIZABLE
) -> FocalNetConfig:
    """The checkpoint's configuration with the caller's options, none of which its weights cannot follow."""
    has = checkpoint.backbone
    config = FocalNetConfig.from_dict({**dataclasses.asdict(has), **options})
    for name in TRACED:
        if name not in resizable and not agree(name, getattr(config, name), getattr(has, name)):
            raise ConfigError(
                f"{checkpoint.path}: these weights have {name}={getattr(has, name)}, not {getattr(config, name)}; "
                f"leave the option out, or train another shape with create_model"
            )
    return config


def _fill(model: Classifier | FocalNet, checkpoint: Checkpoint) -> None:
    """Puts the checkpoint's tensors into a model on meta, without a copy, and initialises what is new in it."""
    given, wanted = checkpoint.state_dict, model.state_dict()
    if isinstance(model, Classifier) and model.num_classes != checkpoint.num_classes:
        given = {key: tensor for key, tensor in given.items() if not key.startswith("head.")}
    new = dense.initial(given, wanted)
    new += [key for key in wanted if key.startswith("head.") and key not in given]
    adapted = dense.adapt(given, wanted)
    if problem := compare(adapted, wanted, new=new).problem:
        raise CheckpointError(f"{checkpoint.path}: {problem}")
    model.load_state_dict({key: adapted[key] for key in wanted if key in adapted}, strict=False, assign=True)
    for name in dict.fromkeys(key.rpartition(".")[0] for key in new):  # in order, so that a seed decides them
        module = model.get_submodule(name).to_empty(device="cpu", recurse=False)
        module.reset_parameters()  # type: ignore[operator]  # a convolution, a layer norm or the head
        init_weights(module)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one image costs: trainable parameters, and multiply-accumulates of all convolutions and products.

    ``macs`` is None for a detector, whose cost depends on what it finds, and for a segmenter.
    """

    params: int
    macs: int | None


def cost(name: str, *, num_classes: int | None = None, image_size: int | None = None) -> Cost:
    """Counts parameters and multiply-accumulates of an architecture, without allocating it or building all of it.

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
    with torch.device("meta"):
        model = config.build()
    return Cost(_params(model), model.macs(size, size))


def _dense_params(config: ModelConfig) -> int:
    """Parts that many networks share are counted once: a backbone, and heads on backbones of the same channels."""
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
    """Of all, and of the first block of each stage, whose blocks are alike."""
    with torch.device("meta"):
        backbone = config.build()
    return _params(backbone), *(_params(stage.blocks[0]) for stage in backbone.stages)


@functools.cache
def _head_params(config: ModelConfig) -> int:
    """Of all but the backbone."""
    with torch.device("meta"):
        model = config.build()
    return _params(model) - _params(model.backbone)


def _params(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
