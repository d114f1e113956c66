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

from focalnet import weights
from focalnet.errors import CheckpointError, ConfigError, UnknownName, did_you_mean
from focalnet.models import NETWORKS, Classifier, ClassifierConfig, DenseConfig, DenseModel
from focalnet.models.backbone import FocalNet, FocalNetConfig, init_weights
from focalnet.models.backbone_shapes import TRACED, agree
from focalnet.models.dense_variants import split_options
from focalnet.models.variants import VARIANTS
from focalnet.weights import Checkpoint, UnsettledSetting, dense
from focalnet.weights.report import compare

Model = Classifier | FocalNet | DenseModel[Any]

_WEIGHT_SUFFIXES = {".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pkl", ".tar"}
_RESIZABLE = ("focal_levels", "focal_windows")


def list_models(pattern: str = "*") -> list[str]:
    """Names of every architecture that matches the shell pattern, e.g. ``"*_lrf"``."""
    return [name for name in (*VARIANTS, *NETWORKS) if fnmatch.fnmatch(name, pattern)]


@overload
def create_model(name: str, *, features_only: Literal[True], **options: Any) -> FocalNet: ...
@overload
def create_model(
    name: str, *, num_classes: int | None = None, features_only: Literal[False] = False, **options: Any
) -> Classifier | DenseModel[Any]: ...


def create_model(name: str, *, num_classes: int | None = None, features_only: bool = False, **options: Any) -> Model:
    """Builds an architecture with random weights; ``focalnet.load`` builds one with trained weights.

    Args:
        name: one of ``list_models()``.
        num_classes: outputs of the classifier, 0 returns pooled features; or kinds of objects or pixels that the
            detector or segmenter tells apart; default: as published.
        features_only: return the backbone instead, which gives a dict of maps ``{"s4": ..., "s8": ...}``.
        options: any field of ``FocalNetConfig``: ``in_chans``, ``drop_path_rate``, ``out_indices``, ...; of a
            detector or segmenter also those of its own configuration: ``masks``, ``max_per_image``, ...

    Raises:
        UnknownName: no such architecture.
        ConfigError: an option that does not exist or cannot work.
    """
    if name in NETWORKS:
        classes = {} if num_classes is None else {"num_classes": num_classes}
        found: DenseConfig = NETWORKS[name].config(**classes, **options)
        return found.backbone.build() if features_only else found.build()
    if name not in VARIANTS:
        known = did_you_mean(name, (*VARIANTS, *NETWORKS))
        raise UnknownName(f'no model "{name}"{known}; "focalnet models" lists all')
    variant = VARIANTS[name]
    config = FocalNetConfig.from_dict({**variant.shape, **options})
    if features_only:
        return config.build()
    outputs = variant.num_classes if num_classes is None else num_classes
    return ClassifierConfig(backbone=config, num_classes=outputs).build()


@overload
def load(name_or_path: str | Path, *, features_only: Literal[True], **options: Any) -> FocalNet: ...
@overload
def load(
    name_or_path: str | Path, *, num_classes: int | None = None, features_only: Literal[False] = False, **options: Any
) -> Classifier | DenseModel[Any]: ...
@overload
def load(name_or_path: str | Path, *, num_classes: int | None = None, features_only: bool, **options: Any) -> Model: ...


def load(
    name_or_path: str | Path, *, num_classes: int | None = None, features_only: bool = False, **options: Any
) -> Model:
    """Builds a model with trained weights, in eval mode, with its card.

    Args:
        name_or_path: a name of ``weights.list_weights()``, or a checkpoint file of ours, of the official
            release, timm, transformers, mmdet or mmseg.
        num_classes: another number than the weights have gives a new, random head, for finetuning.
        features_only: return the backbone instead: final norm and head are left out, the norms of the
            returned maps are new.
        options: fields of ``FocalNetConfig`` to change. Other ``focal_windows`` or more ``focal_levels``
            adapt the weights as the official detection code does (``weights/dense.py``). Of a detector or
            segmenter also fields of its own configuration.

    Raises:
        UnknownName: neither a name nor a file.
        CheckpointError: a file that cannot be read or does not fit.
        DownloadError: the weights could not be fetched.
        ConfigError: an option that does not fit the weights.
    """
    checkpoint = _open(str(name_or_path), options)
    for name, known in checkpoint.unsettled.items():
        warnings.warn(
            f"{name_or_path}: {name}={getattr(checkpoint.backbone, name)} is not settled: {known}. "
            f"Choose with load(..., {name}=True) or {name}=False; either silences this",
            UnsettledSetting,
            stacklevel=2,
        )
    if isinstance(checkpoint.config, DenseConfig):
        if not features_only:
            return _dense(checkpoint, checkpoint.config, num_classes, options)
        checkpoint = dataclasses.replace(
            checkpoint, config=checkpoint.backbone, state_dict=checkpoint.backbone_state_dict
        )
    config = _with_options(checkpoint, options)
    with torch.device("meta"):
        if features_only:
            model: Classifier | FocalNet = config.build()
        elif isinstance(checkpoint.config, ClassifierConfig):
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
    checkpoint: Checkpoint, config: DenseConfig, num_classes: int | None, options: dict[str, Any]
) -> DenseModel[Any]:
    """A detector or segmenter with the checkpoint's weights; with other classes, the layers that name them are new."""
    own, trunk = split_options(type(config), options)
    classes = config.num_classes if num_classes is None else num_classes
    config = dataclasses.replace(
        config, **own, num_classes=classes, backbone=_with_options(checkpoint, trunk, resizable=())
    )
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
    if name in VARIANTS or name in NETWORKS:
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
    if name in NETWORKS:
        classes = {} if num_classes is None else {"num_classes": num_classes}
        return Cost(_dense_params(NETWORKS[name].config(**classes)), None)
    with torch.device("meta"):
        model = create_model(name, num_classes=num_classes)
    assert isinstance(model, Classifier)
    size = image_size or VARIANTS[name].image_size
    return Cost(_params(model), model.macs(size, size))


def _dense_params(config: DenseConfig) -> int:
    """The parts that many networks share are counted once: a trunk, and what stands on trunks of the same channels."""
    trunk = config.backbone
    ones = (1,) * len(trunk.depths)
    narrow = FocalNetConfig(
        embed_dim=trunk.embed_dim, depths=ones, focal_levels=ones, focal_windows=ones, out_indices=trunk.out_indices
    )
    whole, *blocks = _trunk_params(dataclasses.replace(trunk, depths=ones))
    more = sum((depth - 1) * block for depth, block in zip(trunk.depths, blocks, strict=True))
    return whole + more + _head_params(dataclasses.replace(config, backbone=narrow))


@functools.cache
def _trunk_params(config: FocalNetConfig) -> tuple[int, ...]:
    """Of all, and of the first block of each stage, whose blocks are alike."""
    with torch.device("meta"):
        trunk = config.build()
    return _params(trunk), *(_params(stage.blocks[0]) for stage in trunk.stages)


@functools.cache
def _head_params(config: DenseConfig) -> int:
    """Of all but the backbone."""
    with torch.device("meta"):
        model = config.build()
    return _params(model) - _params(model.backbone)


def _params(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
