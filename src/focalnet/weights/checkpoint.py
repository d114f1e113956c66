"""Checkpoint files: read in any known layout, written in our own or another library's.

Our own files are safetensors in the official layout, with the configuration and the model's card as
JSON in the header, so that one file is enough to build the model and to name its classes.

This is one file because every way in ends in one ``Checkpoint``, and every way out starts from one.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook

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
from focalnet.ops.modes import on_meta
from focalnet.reading import parse_json, read_text
from focalnet.weights import layouts
from focalnet.weights.adapters import merged
from focalnet.weights.catalogue import Entry, entries
from focalnet.weights.files import EXPORTED, RawFile, read_tensors, sha256_of, write_pickle, write_safetensors
from focalnet.weights.labels import NUMBERED, category_ids, class_names, ids_of
from focalnet.weights.layouts import LAYOUTS, Hints, huggingface, openmmlab, timm
from focalnet.weights.pickles import Passed
from focalnet.weights.report import Report, compare

Config = FocalNetConfig | ModelConfig

BACKBONE = "backbone"  # file kind of a bare backbone, which belongs to no family
HEADER = "focalnet"  # the key of our JSON in the safetensors header
_OF_CLASSES_AND_IMAGES = ("preprocessing", "class_names", "category_ids")  # fields of a card
_WAY_OUT = "copy it again, or update focalnet if a later version has written it"
_TRAINING_ONLY = {"drop_rate", "drop_path_rate", "layer_scale"}  # they do not change what a trained network computes


class UnsettledSetting(UserWarning):
    """A setting does not follow from the weights, and published sources disagree on it."""


class ApproximatePreprocessing(UserWarning):
    """Images were prepared for the weights in a way that is not done here."""


class NonFiniteWeights(UserWarning):
    """Weights hold NaN or infinite values, so outputs are meaningless."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights with their configuration, card and origin.

    Args:
        path: the file they were read from.
        layout: ``"native"``, ``"microsoft"``, ``"timm"``, ``"huggingface"``, ``"openmmlab"``, ``"focalnet_dino"`` or
            ``"detrex"``.
        config: of the saved classifier, detector, segmenter or bare backbone.
        state_dict: tensors under our names, float32.
        card: class names, preprocessing, origin.
        architecture: its published name, if it has one.
        unused: keys of the file that do not belong to the model.
        unsettled: settings on which published sources disagree, with an explanation.
        section: the key of a training checkpoint that held the weights, e.g. ``"model_ema"``.
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
        """The configuration of the backbone."""
        return _backbone(self.config)

    @property
    def backbone_state_dict(self) -> dict[str, Tensor]:
        """The tensors of the backbone; for a classifier, including the head."""
        return _backbone_tensors(self.config, self.state_dict)

    @property
    def num_classes(self) -> int:
        """Number of outputs of the head; 0 without a head."""
        return 0 if isinstance(self.config, FocalNetConfig) else self.config.num_classes

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that affect predictions, by dotted name, with preprocessing, class names and category ids."""
        card = {name: value for name, value in dataclasses.asdict(self.card).items() if name in _OF_CLASSES_AND_IMAGES}
        every = dict(_leaves({**_plain(self.config), **card}))
        return {name: value for name, value in every.items() if name.rpartition(".")[2] not in _TRAINING_ONLY}

    def not_finite(self) -> list[str]:
        """Names of the tensors that hold NaN or infinite values."""
        floating = {name: t for name, t in self.state_dict.items() if t.is_floating_point()}
        # A finite sum proves in one pass, without a copy, that all values are finite.
        return [name for name, t in floating.items() if not t.sum().isfinite() and not t.isfinite().all()]

    def report(self) -> Report:
        """Compares the tensors with the model they describe, which is not allocated."""
        return compare(self.state_dict, self.described(), unused=self.unused)

    def described(self) -> dict[str, Tensor]:
        """The state dict of the model that the configuration describes, on meta."""
        with on_meta(), _parameters_up_to(2 * len(self.state_dict) + 100):
            return self.config.build().state_dict()


@contextmanager
def _parameters_up_to(most: int) -> Iterator[None]:
    """Stops a build with more parameters, on meta or not: a description may ask for a billion layers."""
    thread, count = threading.get_ident(), 0

    def refuse(module: Any, name: str, parameter: Any) -> None:
        nonlocal count
        count += threading.get_ident() == thread
        if count > most:
            raise CheckpointError(f"it is described as a network of more than {most} tensors, but holds far fewer")

    handle = register_module_parameter_registration_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


def read(path: str | Path, *, architecture: str | None = None, **settings: Any) -> Checkpoint:
    """Reads a checkpoint in any known layout: a file, or a folder that ``save_pretrained`` has written.

    Args:
        path: ``.safetensors``, or a PyTorch pickle with any suffix.
        architecture: its published name, if the tensor shapes are ambiguous.
        settings: fields of ``FocalNetConfig`` that do not follow from the weights: ``post_norm``,
            ``normalize_modulator``, ...

    Raises:
        CheckpointError: the file is unreadable, damaged, or not a FocalNet.
        UnknownName: no such architecture.
    """
    raw = read_tensors(path)
    try:
        if HEADER in raw.metadata:
            return _read_native(raw, raw.metadata[HEADER], architecture, settings)
        if isinstance(raw.content, Mapping) and isinstance(raw.content.get(HEADER), str):
            return _read_native(_of_run(raw), raw.content[HEADER], architecture, settings)
        return _read_foreign(raw, architecture, settings)
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{raw.path}: {error}") from error
    except FocalNetError:
        raise
    except Exception as error:  # names and shapes of tensors may be anything
        raise CheckpointError(f"{raw.path}: its tensors are not those of a network ({_reason(error)})") from error


def with_channels(checkpoint: Checkpoint, in_chans: int) -> Checkpoint:
    """The weights for images of other channels, as timm adapts them: those of the 3 summed for 1, else repeated.

    Repeated ones are scaled by 3 / ``in_chans``. Mean and deviation of the card follow: their mean for 1 channel, else
    those of the 3 in turn. Weights that do not have 3 channels are as they are.

    Args:
        checkpoint: of any network.
        in_chans: channels of the images.
    """
    has = checkpoint.backbone
    if in_chans == has.in_chans or has.in_chans != 3 or not isinstance(in_chans, int) or in_chans < 1:
        return checkpoint
    from timm.models import adapt_input_conv  # which takes a second

    key = next(key for key in checkpoint.state_dict if key.endswith("patch_embed.proj.weight"))
    config = _changed(checkpoint.config, {"in_chans": in_chans})
    stem = adapt_input_conv(in_chans, checkpoint.state_dict[key])
    how = checkpoint.card.preprocessing
    mean, std = (
        (sum(values) / len(values),) if in_chans == 1 else tuple(values[c % len(values)] for c in range(in_chans))
        for values in (how.mean, how.std)
    )
    how = dataclasses.replace(how, mean=mean, std=std)
    card = dataclasses.replace(checkpoint.card, preprocessing=how, metrics={})
    return dataclasses.replace(checkpoint, config=config, state_dict={**checkpoint.state_dict, key: stem}, card=card)


def save(model: Model[Any, Any] | FocalNet, path: str | Path) -> Path:
    """Writes a model's weights, configuration and card as one safetensors file, atomically.

    Raises:
        CheckpointError: the file cannot be written; no partial file is left. Or the model does not fit its
            configuration or its card, e.g. after its head was replaced, so that the file would name other classes.
    """
    card = model.card or ModelCard(name=Path(path).stem)
    checkpoint = Checkpoint(Path(path), "native", model.config, model.state_dict(), card)
    report = checkpoint.report()
    if changed := (*report.missing, *report.mismatched, *report.unused):
        raise CheckpointError(
            f"cannot write {path}: the model was changed and is not what its configuration describes ({changed[0]}); "
            "change the number of classes with focalnet.load(..., num_classes=...) or reset_classifier, or keep "
            "model.state_dict() with torch.save"
        )
    if problem := _misnamed(card, checkpoint.num_classes):
        raise CheckpointError(
            f"cannot write {path}: {problem}; set model.card = dataclasses.replace(model.card, class_names=..., "
            "category_ids=())"
        )
    return write_safetensors(path, checkpoint.state_dict, {HEADER: describe(model.config, card)})


def _misnamed(card: ModelCard, num_classes: int) -> str | None:
    """How a card contradicts the number of classes, if it does; a network without classes may have any card."""
    for name in ("class_names", "category_ids"):
        if num_classes and (given := len(getattr(card, name))) not in (0, num_classes):
            return f"the model has {num_classes} classes, but its card has {given} {name}"
    return None


def export(checkpoint: Checkpoint, path: str | Path, layout: str, dtype: torch.dtype = torch.float32) -> Path:
    """Writes a checkpoint in a layout; for transformers, also a ``config.json`` in the same folder.

    Args:
        checkpoint: of a classifier; of a detector or segmenter for ``"openmmlab"``, of DINO for ``"focalnet_dino"`` and
            ``"detrex"``.
        path: ``.safetensors``, or any other suffix for a PyTorch pickle.
        layout: one of those that a ``Checkpoint`` can have.
        dtype: storage type; ``read`` always returns float32.

    Raises:
        CheckpointError: the layout's library has no such model, or the file cannot be written.
    """
    path, config = Path(path), checkpoint.config
    if path.suffix in EXPORTED or (layout == "huggingface" and path.name == "config.json"):
        raise CheckpointError(f"{path}: weights cannot have this name; name it {path.stem}.safetensors")
    stored = {key: t.to(dtype) if t.is_floating_point() else t for key, t in checkpoint.state_dict.items()}
    not_finite = dataclasses.replace(checkpoint, state_dict=stored).not_finite()
    if overflown := sorted({*not_finite} - {*checkpoint.not_finite()}):
        raise CheckpointError(
            f"{checkpoint.path}: {len(overflown)} of its tensors, e.g. {overflown[0]}, hold values beyond the range of "
            f"{str(dtype).removeprefix('torch.')}; choose bfloat16 or float32"
        )
    if layout == "native":
        if path.suffix != ".safetensors":
            raise CheckpointError(f"{path}: our own files are safetensors; name it {path.stem}.safetensors")
        origin = f"{checkpoint.path.name}, sha256 {sha256_of(checkpoint.path)}"
        card = dataclasses.replace(checkpoint.card, source=origin)
        return write_safetensors(path, stored, {HEADER: describe(config, card)})
    if layout == openmmlab.NAME:
        if isinstance(config, FocalNetConfig) or registry.family_of(config).layout is None:
            raise CheckpointError(f"{checkpoint.path}: only a detector or segmenter has the layout {layout}")
        beside = openmmlab.describe(config, checkpoint.card.class_names)
        if path.suffix == ".safetensors":
            return write_safetensors(path, stored, {})
        return write_pickle(path, stored, section="state_dict", beside=beside)
    if layout in openmmlab.foreign_layouts():
        try:
            names = openmmlab.foreign_names(config, layout)
            tensors = names.write(stored, config, checkpoint.card.category_ids)
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint.path}: {error}") from error
        return write_safetensors(path, tensors, {}) if path.suffix == ".safetensors" else write_pickle(path, tensors)
    if not isinstance(config, ClassifierConfig):
        what = "bare backbone" if isinstance(config, FocalNetConfig) else f"{_title(config)}, which has openmmlab's"
        raise CheckpointError(f"{checkpoint.path}: only a classifier has a {layout} layout; this is a {what}")
    if config.multi_label and layout != "huggingface":
        raise CheckpointError(
            f"{checkpoint.path}: the layout {layout} cannot say that an image can have several classes, so its files "
            "would be read as those of single classes; choose native or huggingface"
        )
    theirs = LAYOUTS[layout]
    layouts.check(theirs, config.backbone)
    tensors = theirs.from_native(stored, config.backbone)
    if layout == "huggingface":
        description = huggingface.describe(config, checkpoint.card.class_names)
        write(path.with_name("config.json"), (json.dumps(description, indent=2) + "\n").encode(), CheckpointError)
    return write_safetensors(path, tensors, {}) if path.suffix == ".safetensors" else write_pickle(path, tensors)


def untold(checkpoint: Checkpoint, path: str | Path) -> dict[str, Any]:
    """Settings of a checkpoint that are lost in an exported file, so that they must be passed when loading it.

    Reads the file without further information, and compares the settings.

    Args:
        checkpoint: the exported checkpoint.
        path: the exported file.

    Returns:
        The checkpoint's values of the settings that differ in the file, by dotted name.

    Raises:
        CheckpointError: the file cannot be read.
    """
    missing: dict[str, Any] = {}
    try:
        back = read(path)
    except CheckpointError:  # for an unpublished shape, post_norm is unknown, too
        missing = {"post_norm": checkpoint.backbone.post_norm}
        back = read(path, **missing)
    read_back = back.settings
    changed = {name: value for name, value in checkpoint.settings.items() if read_back.get(name) != value}
    return {**missing, **changed}


def _read_foreign(raw: RawFile, architecture: str | None, settings: Mapping[str, Any]) -> Checkpoint:
    if raw.path.name == "last.ckpt" and raw.path.with_name("model.safetensors").is_file():
        raise CheckpointError(
            "it is the state of a run of an earlier version, without the names of the classes; load model.safetensors "
            "beside it"
        )
    raw = dataclasses.replace(raw, tensors=layouts.plain_names(raw.tensors))
    if network := openmmlab.unwrap(raw.tensors):
        return _read_dense(raw, network, architecture, settings)
    place = layouts.detect(raw.tensors)
    layout = place.layout
    inside, outside = layouts.unwrap(raw.tensors, place)
    state_dict, unknown = layout.to_native(inside)
    _check_types(state_dict)
    hints = _hints(raw, layout.name)
    known = {**hints.settings, **settings}
    post_norm = layout.post_norm_of(inside)
    if post_norm is not None:
        known.setdefault("post_norm", post_norm)
    config, name = shapes.infer(state_dict, architecture=architecture or hints.architecture, settings=known)
    read_as: Config = dataclasses.replace(config, multi_label=hints.multi_label)
    if "norm.weight" not in state_dict and not config.num_classes:  # the feature maps of timm's features_only
        read_as = dataclasses.replace(config.backbone, out_norms=False)
    checkpoint = Checkpoint(
        path=raw.path,
        layout=layout.name,
        config=read_as,
        state_dict=state_dict,
        card=_card(raw.path, name, config.num_classes, hints),
        architecture=name,
        unused=(*outside, *unknown),
        unsettled=_unsettled(_published_entry(name).unsettled, known),
        section=raw.section,
    )
    return _complete(checkpoint)


def _read_dense(
    raw: RawFile, network: openmmlab.Unwrapped, architecture: str | None, settings: Mapping[str, Any]
) -> Checkpoint:
    inside = network.tensors
    config, name = openmmlab.infer(
        inside, architecture=architecture, settings=settings, names=network.names, content=raw.content
    )
    with on_meta():
        expected = config.build().state_dict()
    family = registry.family_of(config)
    names, ids = openmmlab.class_names(raw.content), network.category_ids
    if not names:
        labels = [label_set for label_set in NUMBERED if ids and ids == category_ids(label_set)]
        if name and not ids:
            published_labels = [entry.labels for entry in entries().values() if entry.network == name]
            labels += [label_set for label_set in (*published_labels, family.labels) if label_set]
        names = next((class_names(one) for one in labels if len(class_names(one)) == config.num_classes), ())
    names = names if len(names) == config.num_classes else ()
    published = next((entry for entry in entries().values() if entry.network == name), None) if name else None
    checkpoint = Checkpoint(
        path=raw.path,
        layout=network.layout,
        config=config,
        state_dict={key: tensor for key, tensor in inside.items() if key in expected},
        card=ModelCard(
            name=name or raw.path.stem,
            class_names=names,
            category_ids=ids or ids_of(names),
            preprocessing=published.preprocessing if published else family.preprocessing,
            source=raw.path.name,
        ),
        architecture=name,
        unused=(*network.outside, *(key for key in inside if key not in expected)),
        section=raw.section,
    )
    return _complete(checkpoint)


def _of_run(raw: RawFile) -> RawFile:
    """The checkpoint of a run of ours with the tensors of its network alone: of the average, if there is one.

    Low-rank adapters are merged, as in the weights that the run keeps.
    """
    prefixes = [f"{name}." for name in ("average.module", "network")]
    prefix = next((one for one in prefixes if any(key.startswith(one) for key in raw.tensors)), "")
    inside = {key.removeprefix(prefix): tensor for key, tensor in raw.tensors.items() if key.startswith(prefix)}
    try:
        return dataclasses.replace(raw, tensors=merged(inside))
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"its low-rank adapters are damaged ({_reason(error)}); copy it again") from error


def _read_native(raw: RawFile, header: str, architecture: str | None, settings: Mapping[str, Any]) -> Checkpoint:
    try:
        described = parse_json(header)
        cls = _config_class(described["kind"])
        try:
            config, card = cls.from_dict(described["config"]), _card_from(described["card"])
        except ConfigError as error:
            raise CheckpointError(f"its header is damaged ({error}); {_WAY_OUT}") from error
        traced = shapes.trace(_backbone_tensors(config, raw.tensors))
        if architecture:
            shapes.check_is(architecture, traced)
        shapes.check_described(_backbone(config), traced)
        if isinstance(config, ClassifierConfig) and config.num_classes != shapes.classes_of(raw.tensors):
            raise CheckpointError(f"it is described with num_classes={config.num_classes}, but its head differs")
        if problem := _misnamed(card, 0 if isinstance(config, FocalNetConfig) else config.num_classes):
            raise CheckpointError(f"its header is damaged ({problem}); {_WAY_OUT}")
        config = _changed(config, settings)
        return _complete(Checkpoint(raw.path, "native", config, raw.tensors, card, shapes.published_name(traced)))
    except FocalNetError:
        raise
    except Exception as error:  # a damaged header can hold values of any type anywhere
        raise CheckpointError(f"its header is damaged ({_reason(error)}); {_WAY_OUT}") from error


def read_header(header: str) -> tuple[Config, ModelCard]:
    """Configuration and card of one of our own files, the inverse of ``describe``.

    Raises:
        CheckpointError: it describes no network that this version has.
    """
    described = parse_json(header)
    return _config_class(described["kind"]).from_dict(described["config"]), _card_from(described["card"])


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _complete(checkpoint: Checkpoint) -> Checkpoint:
    described = checkpoint.described()
    floating = {key for key, tensor in described.items() if tensor.is_floating_point()}
    _check_types({key: tensor for key, tensor in checkpoint.state_dict.items() if key in floating})
    if problem := compare(checkpoint.state_dict, described, unused=checkpoint.unused).problem:
        raise CheckpointError(problem)
    return checkpoint


def _check_types(weights: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError for weights of integers, of 8-bit floats or of complex numbers: scales are missing."""
    if other := [key for key, tensor in weights.items() if tensor.dtype != torch.float32]:
        kind = str(weights[other[0]].dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{len(other)} of its weights are of {kind}, e.g. {other[0]}; save them before quantization"
        )


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every value of nested mappings, and of sequences of mappings, with its dotted name."""
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


def _backbone_tensors(config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    is_backbone = isinstance(config, FocalNetConfig | ClassifierConfig)  # a classifier is its own backbone
    return dict(tensors) if is_backbone else openmmlab.backbone_of(tensors)


def _changed(config: Config, settings: Mapping[str, Any]) -> Config:
    backbone = FocalNetConfig.from_dict({**dataclasses.asdict(_backbone(config)), **settings})
    return backbone if isinstance(config, FocalNetConfig) else config.with_backbone(backbone)


def describe(config: Config, card: ModelCard) -> str:
    """Configuration and card as JSON: what our own files say of their tensors."""
    kind = BACKBONE if isinstance(config, FocalNetConfig) else registry.family_of(config).file_kind
    known = {key: value for key, value in dataclasses.asdict(card).items() if key != "category_ids" or value}
    if card.preprocessing.fit == "crop":  # so that earlier versions read all other files
        del known["preprocessing"]["fit"]
    return json.dumps({"kind": kind, "config": _plain(config), "card": known})


def _plain(config: Config) -> dict[str, Any]:
    return dataclasses.asdict(config) if isinstance(config, FocalNetConfig) else config.to_dict()


def _config_class(kind: str) -> type[FocalNetConfig] | type[ModelConfig]:
    """The configuration class for the kind in a file's header."""
    if kind == BACKBONE:
        return FocalNetConfig
    known = []
    for family in registry.each():
        if family.file_kind == kind:
            return family.config
        known.append(family.file_kind)
    name = str(kind)[:80]
    raise CheckpointError(
        f'it holds a "{name}", for which this version has no network{did_you_mean(name, known)}: update focalnet, '
        "or import the module that registers it"
    )


def _title(config: ModelConfig) -> str:
    return {"detection": "detector"}.get(config.output, "segmenter")


def _card_from(values: Mapping[str, Any]) -> ModelCard:
    preprocessing: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values["preprocessing"].items()
    }
    lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return ModelCard(**{**values, **lists, "preprocessing": Preprocessing(**preprocessing)})


def _card(path: Path, name: str | None, num_classes: int, hints: Hints) -> ModelCard:
    """The card of a foreign file: from its ``config.json``, else from the published entry of its architecture."""
    published = _published_entry(name)
    known = (hints.class_names, class_names(published.labels) if published.labels else ())
    return ModelCard(
        name=name or path.stem,
        class_names=next((names for names in known if len(names) == num_classes), ()),
        preprocessing=dataclasses.replace(published.preprocessing, **hints.preprocessing),
        source=path.name,
    )


def _hints(raw: RawFile, layout: str) -> Hints:
    """What the JSON files beside a file of the Hub say, and timm's training arguments within one of its own."""
    description = _beside(raw.path, "config.json") if layout in ("timm", "huggingface") else {}
    processor = _beside(raw.path, "preprocessor_config.json") if layout == "huggingface" else {}
    name, found = "config.json", Hints()
    try:
        if layout == "timm" and "architecture" in description:
            found = timm.hints(description)
        elif layout == "timm" and (arguments := _arguments(raw.content)):
            name = "arguments of training"
            how, remarks = timm.preprocessing(arguments)
            found = Hints(preprocessing=how, remarks=remarks)
        elif layout == "huggingface" and description.get("model_type") == "focalnet":
            found = huggingface.hints(description)
        if processor:
            name = "preprocessor_config.json"
            how, remarks = huggingface.preprocessing(processor)
            found = dataclasses.replace(found, preprocessing=how, remarks=remarks)
        Preprocessing(**found.preprocessing)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, ConfigError) as error:
        raise CheckpointError(f"the {name} next to it is damaged ({error}); copy it again or remove it") from error
    if found.remarks:
        warnings.warn(
            f"{raw.path}: images were prepared with {', '.join(found.remarks)}, which is not done here: the short side "
            f"is resized ({found.preprocessing.get('interpolation', 'bicubic')}) and the center is cropped",
            ApproximatePreprocessing,
            stacklevel=2,
        )
    return found


def _arguments(content: Any) -> Mapping[str, Any]:
    """Those of the script that saved a checkpoint, as timm keeps them; empty where there are none."""
    arguments = content.get("args") if isinstance(content, Mapping) else None
    state = arguments.state if isinstance(arguments, Passed) else arguments
    return state if isinstance(state, Mapping) else {}


def _beside(path: Path, name: str) -> dict[str, Any]:
    """The content of a JSON file beside another; empty if there is no such file."""
    file = path.with_name(name)
    if not file.is_file():
        return {}
    try:
        content = parse_json(read_text(file))
        if not isinstance(content, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the {name} next to it is damaged ({error}); copy it again or remove it") from error
    return content


def _published_entry(architecture: str | None) -> Entry:
    """The catalogue entry of this architecture; an empty entry if there is none."""
    none = Entry(name="", task="", architecture="", labels="")
    published = (e for e in entries().values() if e.task == "classification" and not e.embedded)
    return next((e for e in published if e.architecture == architecture), none)


def _unsettled(known: Mapping[str, str], settings: Mapping[str, Any]) -> dict[str, str]:
    return {name: text for name, text in known.items() if name not in settings}
