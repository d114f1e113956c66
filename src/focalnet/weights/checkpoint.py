"""A checkpoint file as (config, state dict): read from any known layout, written in ours or theirs.

Our own files are safetensors in the official layout, with the configuration and the model's card as
JSON in the header, so that one file is enough to rebuild the model and to name its classes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from focalnet import registry
from focalnet.card import ModelCard, Preprocessing
from focalnet.errors import CheckpointError, ConfigError, FocalNetError, did_you_mean
from focalnet.files import write
from focalnet.models import (
    ClassifierConfig,
    Model,
    ModelConfig,
)
from focalnet.models import backbone_shapes as shapes
from focalnet.models.backbone import FocalNet, FocalNetConfig
from focalnet.weights import layouts
from focalnet.weights.catalogue import Entry, entries
from focalnet.weights.files import RawFile, read_tensors, sha256_of, write_pickle, write_safetensors
from focalnet.weights.labels import class_names
from focalnet.weights.layouts import LAYOUTS, Hints, huggingface, openmmlab, timm
from focalnet.weights.report import Report, compare

Config = FocalNetConfig | ModelConfig

BACKBONE = "backbone"  # kind of a file with a backbone alone, which is of no family
HEADER = "focalnet"  # the key of our JSON in the safetensors header
_TRAINING_ONLY = {"drop_rate", "drop_path_rate", "layer_scale"}  # rates, and a value that is only initial


class UnsettledSetting(UserWarning):
    """A setting leaves no trace in the weights, and the published sources disagree on it."""


class NonFiniteWeights(UserWarning):
    """Weights hold NaN or infinite values: whatever they compute is meaningless."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights, and everything that is known of them.

    Args:
        path: the file they were read from.
        layout: ``"native"``, ``"microsoft"``, ``"timm"``, ``"huggingface"`` or ``"openmmlab"``.
        config: of the classifier, detector, segmenter or bare backbone that was saved.
        state_dict: by our names, float32.
        card: class names, preprocessing, origin.
        architecture: its published name, if it has one.
        unused: keys of the file that are no part of a FocalNet.
        unsettled: settings that the caller may want to choose, and what is known of them.
        section: the part of a training checkpoint the weights were taken from, e.g. ``"model_ema"``.
    """

    path: Path
    layout: str
    config: Config
    state_dict: dict[str, Tensor] = field(repr=False)
    card: ModelCard
    architecture: str | None = None
    unused: tuple[str, ...] = ()
    unsettled: dict[str, str] = field(default_factory=dict)
    section: str | None = None

    @property
    def backbone(self) -> FocalNetConfig:
        """The shape of the backbone, whatever was saved."""
        return _backbone(self.config)

    @property
    def backbone_state_dict(self) -> dict[str, Tensor]:
        """The tensors of the backbone, of a classifier with those of its head."""
        return _trunk(self.config, self.state_dict)

    @property
    def num_classes(self) -> int:
        """Outputs of the head; 0 where there is none."""
        return 0 if isinstance(self.config, FocalNetConfig) else self.config.num_classes

    @property
    def settings(self) -> dict[str, Any]:
        """What the network computes with, by dotted names, and how its images are prepared and its classes called."""
        card = {"preprocessing": dataclasses.asdict(self.card.preprocessing), "class_names": self.card.class_names}
        every = dict(_leaves({**_plain(self.config), **card}))
        return {name: value for name, value in every.items() if name.rpartition(".")[2] not in _TRAINING_ONLY}

    def not_finite(self) -> list[str]:
        """Names of the tensors that hold NaN or infinite values."""
        floating = {name: t for name, t in self.state_dict.items() if t.is_floating_point()}
        # The sum of a tensor tells in one pass, without a copy, that all its values are finite.
        return [name for name, t in floating.items() if not t.sum().isfinite() and not t.isfinite().all()]

    def report(self) -> Report:
        """How the tensors fit the model they describe, without allocating it."""
        with torch.device("meta"):
            model = self.config.build()
        return compare(self.state_dict, model.state_dict(), unused=self.unused)


def read(path: str | Path, *, architecture: str | None = None, **settings: Any) -> Checkpoint:
    """Reads a checkpoint of any known layout: a file, or a folder as ``save_pretrained`` writes it.

    Args:
        path: ``.safetensors``, or a PyTorch pickle under any suffix.
        architecture: its published name, where the shapes alone do not tell.
        settings: fields of ``FocalNetConfig`` that leave no trace in the weights: ``post_norm``,
            ``normalize_modulator``, ...

    Raises:
        CheckpointError: unreadable, damaged, or not a FocalNet; the message names the file.
        UnknownName: no such architecture.
    """
    raw = read_tensors(path)
    try:
        if HEADER in raw.metadata:
            return _read_native(raw, architecture, settings)
        return _read_foreign(raw, architecture, settings)
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{raw.path}: {error}") from error


def save(model: Model[Any, Any] | FocalNet, path: str | Path) -> Path:
    """Writes a model's weights, configuration and card as one safetensors file, atomically.

    Raises:
        CheckpointError: the file cannot be written; nothing half written is left.
    """
    card = model.card or ModelCard(name=Path(path).stem)
    return write_safetensors(path, model.state_dict(), {HEADER: _header(model.config, card)})


def export(checkpoint: Checkpoint, path: str | Path, layout: str, dtype: torch.dtype = torch.float32) -> Path:
    """Writes a checkpoint in a layout; for transformers also the ``config.json`` beside it.

    Args:
        checkpoint: of a classifier, or of a detector or segmenter for ``"openmmlab"``.
        path: ``.safetensors``, or any other suffix for a PyTorch pickle.
        layout: ``"native"``, ``"microsoft"``, ``"timm"``, ``"huggingface"`` or ``"openmmlab"``.
        dtype: how numbers are stored; ``read`` gives float32 whichever it is.

    Raises:
        CheckpointError: the layout's library has no such model, or the file cannot be written.
    """
    path, config = Path(path), checkpoint.config
    stored = {key: t.to(dtype) if t.is_floating_point() else t for key, t in checkpoint.state_dict.items()}
    if layout == "native":
        if path.suffix != ".safetensors":
            raise CheckpointError(f"{path}: our own files are safetensors; name it {path.stem}.safetensors")
        origin = f"{checkpoint.path.name}, sha256 {sha256_of(checkpoint.path)}"
        card = dataclasses.replace(checkpoint.card, source=origin)
        return write_safetensors(path, stored, {HEADER: _header(config, card)})
    if layout == openmmlab.NAME:
        if isinstance(config, FocalNetConfig) or registry.family_of(config).layout is None:
            raise CheckpointError(f"{checkpoint.path}: only a detector or segmenter has the layout {layout}")
        beside = openmmlab.describe(config, checkpoint.card.class_names)
        if path.suffix == ".safetensors":
            return write_safetensors(path, stored, {})
        return write_pickle(path, stored, section="state_dict", beside=beside)
    if not isinstance(config, ClassifierConfig):
        what = "bare backbone" if isinstance(config, FocalNetConfig) else f"{_title(config)}, which has openmmlab's"
        raise CheckpointError(f"{checkpoint.path}: only a classifier has a {layout} layout; this is a {what}")
    theirs = LAYOUTS[layout]
    layouts.check(theirs, config.backbone)
    tensors = theirs.from_native(stored, config.backbone)
    if layout == "huggingface":
        description = huggingface.describe(config, checkpoint.card.class_names)
        write(path.with_name("config.json"), (json.dumps(description, indent=2) + "\n").encode(), CheckpointError)
    return write_safetensors(path, tensors, {}) if path.suffix == ".safetensors" else write_pickle(path, tensors)


def untold(checkpoint: Checkpoint, path: str | Path) -> dict[str, Any]:
    """Settings of a checkpoint that a file exported from it does not tell, so that its reader must be given them.

    Found by reading the file as anybody would who has nothing else.

    Args:
        checkpoint: that was exported.
        path: the file written.

    Returns:
        the checkpoint's value of each setting that comes back as another one, by its dotted name.

    Raises:
        CheckpointError: the file cannot be read.
    """
    missing: dict[str, Any] = {}
    try:
        back = read(path)
    except CheckpointError:  # a shape that was never published does not even tell where its norms are
        missing = {"post_norm": checkpoint.backbone.post_norm}
        back = read(path, **missing)
    told = back.settings
    changed = {name: value for name, value in checkpoint.settings.items() if told.get(name) != value}
    return {**missing, **changed}


def _read_foreign(raw: RawFile, architecture: str | None, settings: Mapping[str, Any]) -> Checkpoint:
    if network := openmmlab.unwrap(raw.tensors):
        return _read_dense(raw, *network, architecture, settings)
    layout = layouts.detect(raw.tensors)
    inside, outside = layouts.unwrap(raw.tensors, layout)
    state_dict, unknown = layout.to_native(inside)
    hints = _hints(raw.path.with_name("config.json"), layout.name)
    known = {**hints.settings, **settings}
    told = layout.post_norm_of(inside)
    if told is not None:
        known.setdefault("post_norm", told)
    config, name = shapes.infer(state_dict, architecture=architecture or hints.architecture, settings=known)
    checkpoint = Checkpoint(
        path=raw.path,
        layout=layout.name,
        config=config,
        state_dict=state_dict,
        card=_card(raw.path, name, config.num_classes, hints),
        architecture=name,
        unused=(*outside, *unknown),
        unsettled=_unsettled(_twin(name).unsettled, known),
        section=raw.section,
    )
    return _complete(checkpoint)


def _read_dense(
    raw: RawFile,
    inside: dict[str, Tensor],
    outside: list[str],
    architecture: str | None,
    settings: Mapping[str, Any],
) -> Checkpoint:
    config, name = openmmlab.infer(inside, architecture=architecture, settings=settings)
    with torch.device("meta"):
        wanted = config.build().state_dict()
    twin = next((entry for entry in entries().values() if entry.network == name), None) if name else None
    family = registry.family_of(config)
    labels = twin.labels if twin else family.labels
    names = openmmlab.class_names(raw.content) or (class_names(labels) if name and labels else ())
    checkpoint = Checkpoint(
        path=raw.path,
        layout=openmmlab.NAME,
        config=config,
        state_dict={key: tensor for key, tensor in inside.items() if key in wanted},
        card=ModelCard(
            name=name or raw.path.stem,
            class_names=names if len(names) == config.num_classes else (),
            preprocessing=twin.preprocessing if twin else family.preprocessing,
            source=raw.path.name,
        ),
        architecture=name,
        unused=(*outside, *(key for key in inside if key not in wanted)),
        section=raw.section,
    )
    return _complete(checkpoint)


def _read_native(raw: RawFile, architecture: str | None, settings: Mapping[str, Any]) -> Checkpoint:
    try:
        header = json.loads(raw.metadata[HEADER])
        config = _config_class(header["kind"]).from_dict(header["config"])
        card = _card_from(header["card"])
        traced = shapes.trace(_trunk(config, raw.tensors))
        if architecture:
            shapes.check_is(architecture, traced)
        shapes.check_described(_backbone(config), traced)
        if isinstance(config, ClassifierConfig) and config.num_classes != shapes.classes_of(raw.tensors):
            raise CheckpointError(f"it is described with num_classes={config.num_classes}, but its head has others")
        config = _changed(config, settings)
        return _complete(Checkpoint(raw.path, "native", config, raw.tensors, card, shapes.published_name(traced)))
    except FocalNetError:
        raise
    except Exception as error:  # a damaged header can hold values of any type anywhere
        raise CheckpointError(f"its description is damaged ({type(error).__name__}: {error}); copy it again") from error


def _complete(checkpoint: Checkpoint) -> Checkpoint:
    if problem := checkpoint.report().problem:
        raise CheckpointError(problem)
    return checkpoint


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested mappings, and of sequences of them, by its dotted name."""
    nested = value if isinstance(value, Mapping) else None
    if isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
        nested = dict(enumerate(value))
    if nested is None:
        yield prefix, value
    else:
        for name, item in nested.items():
            yield from _leaves(item, f"{prefix}.{name}" if prefix else str(name))


def _backbone(config: Config) -> FocalNetConfig:
    return config if isinstance(config, FocalNetConfig) else config.backbone


def _trunk(config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    whole = isinstance(config, FocalNetConfig | ClassifierConfig)  # a classifier is its own backbone
    return dict(tensors) if whole else openmmlab.backbone_of(tensors)


def _changed(config: Config, settings: Mapping[str, Any]) -> Config:
    backbone = FocalNetConfig.from_dict({**dataclasses.asdict(_backbone(config)), **settings})
    return backbone if isinstance(config, FocalNetConfig) else config.with_backbone(backbone)


def _header(config: Config, card: ModelCard) -> str:
    kind = BACKBONE if isinstance(config, FocalNetConfig) else registry.family_of(config).file_kind
    return json.dumps({"kind": kind, "config": _plain(config), "card": dataclasses.asdict(card)})


def _plain(config: Config) -> dict[str, Any]:
    return dataclasses.asdict(config) if isinstance(config, FocalNetConfig) else config.to_dict()


def _config_class(kind: str) -> type[FocalNetConfig] | type[ModelConfig]:
    """Of what the header of a file names."""
    if kind == BACKBONE:
        return FocalNetConfig
    known = {family.file_kind: family.config for family in registry.families()}
    if kind not in known:
        raise CheckpointError(
            f'it holds a "{kind}", which this version has no network for{did_you_mean(kind, known)}: update focalnet, '
            "or import the module that registers it"
        )
    return known[kind]


def _title(config: ModelConfig) -> str:
    return {"detection": "detector"}.get(config.output, "segmenter")


def _card_from(values: Mapping[str, Any]) -> ModelCard:
    preprocessing: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values["preprocessing"].items()
    }
    names = values["class_names"]
    names = tuple(names) if isinstance(names, list) else names
    return ModelCard(**{**values, "class_names": names, "preprocessing": Preprocessing(**preprocessing)})


def _card(path: Path, name: str | None, num_classes: int, hints: Hints) -> ModelCard:
    """The card of a foreign file: what its description says, else what its published twin says."""
    twin = _twin(name)
    known = (hints.class_names, class_names(twin.labels) if twin.labels else ())
    return ModelCard(
        name=name or path.stem,
        class_names=next((names for names in known if len(names) == num_classes), ()),
        preprocessing=hints.preprocessing or twin.preprocessing,
        source=path.name,
    )


def _hints(path: Path, layout: str) -> Hints:
    """What the ``config.json`` beside a file of the Hub says; nothing where there is none, or another library's."""
    if layout not in ("timm", "huggingface") or not path.is_file():
        return Hints()
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        if layout == "timm" and "architecture" in description:
            return timm.hints(description)
        if layout == "huggingface" and description.get("model_type") == "focalnet":
            return huggingface.hints(description)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise CheckpointError(f"the {path.name} beside it is damaged ({error}); copy it again or remove it") from error
    return Hints()


def _twin(architecture: str | None) -> Entry:
    """The entry of the catalogue that was published with this architecture; an empty one if none was."""
    none = Entry(name="", task="", architecture="", labels="")
    published = (e for e in entries().values() if e.task == "classification" and not e.embedded)
    return next((e for e in published if e.architecture == architecture), none)


def _unsettled(known: Mapping[str, str], settings: Mapping[str, Any]) -> dict[str, str]:
    return {name: text for name, text in known.items() if name not in settings}
