"""DINO by its state dict: mmdet's, whose names are ours, FocalNet-DINO's (and IDEA-Research/DINO's) and detrex's.

Both of the others keep one copy of a head for each decoder layer, also of one that all share, and each twice: the
copies at the top are those that count when they load a file.

In FocalNet-DINO the place of a class among the outputs is its number in the annotation file: there are 91 for COCO and
366 for Objects365, of which those without a class are left out here. In mmdet and detrex classes are numbered without
gaps, as here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from focalnet.errors import CheckpointError
from focalnet.models.backbone import FocalNetConfig
from focalnet.models.base import ForeignNames, StateDictLayout
from focalnet.models.dino.config import DINOConfig
from focalnet.models.openmmlab import count

_QUERIES, _LABELS = "query_embedding.weight", "dn_query_generator.label_embedding.weight"
_HEAD = re.compile(r"(class|bbox)_embed\.(\d+)\.(?:layers\.(\d)\.)?(weight|bias)")
_COPY = re.compile(r"transformer\.decoder\.(?:class|bbox)_embed\.")
_ENCODER_HEAD = re.compile(r"transformer\.enc_out_(class|bbox)_embed\.(?:layers\.(\d)\.)?(weight|bias)")
_BRANCHES = {"class": "cls_branches", "bbox": "reg_branches"}

_NO_COCO_CLASS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
_PUBLISHED_IDS = {  # numbers of the classes, by how many outputs the release has for them
    91: tuple(number for number in range(1, 91) if number not in _NO_COCO_CLASS),
    366: tuple(range(1, 366)),
}
_MOST_OUTPUTS = 10_000  # more are a sign of numbers that do not count classes
_NEVER = -20.0  # logit of an output without a class

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Names:
    """Pairs of ours and theirs.

    Args:
        starts: of keys; the first that matches counts, in both directions.
        parts: within keys that start so, by our start; likewise.
    """

    starts: Pairs
    parts: Mapping[str, Pairs]

    def renamed(self, key: str, source: int) -> str:
        """A key by the other names; ``source`` is 0 for ours, 1 for theirs."""
        for names in self.starts:
            if not key.startswith(names[source]):
                continue
            key = names[1 - source] + key.removeprefix(names[source])
            for parts in self.parts.get(names[0], ()):
                if parts[source] in key:
                    return key.replace(parts[source], parts[1 - source], 1)
            return key
        return key


_TRANSFORMER = (
    ("query_embedding.", "transformer.tgt_embed."),
    ("memory_trans_fc.", "transformer.enc_output."),
    ("memory_trans_norm.", "transformer.enc_output_norm."),
    ("dn_query_generator.label_embedding.", "label_enc."),
    ("encoder.", "transformer.encoder."),
    ("decoder.", "transformer.decoder."),
)
# Norms are numbered in the order in which they are applied.
_MLP = ((".ffn.layers.0.0.", ".linear1."), (".ffn.layers.1.", ".linear2."))
_RELEASE = _Names(
    starts=(("backbone.", "backbone.0."), ("level_embed", "transformer.level_embed"), *_TRANSFORMER),
    parts={
        "encoder.": (*_MLP, (".norms.0.", ".norm1."), (".norms.1.", ".norm2.")),
        "decoder.": (
            *((".self_attn.attn.", ".self_attn."), *_MLP),
            *((".norms.0.", ".norm2."), (".norms.1.", ".norm1."), (".norms.2.", ".norm3.")),
        ),
    },
)
_ATTENTION = ((".self_attn.", ".attentions.0."), (".ffn.", ".ffns.0."))
_DETREX = _Names(
    starts=(("neck.", "neck."), ("level_embed", "transformer.level_embeds"), *_TRANSFORMER),
    parts={
        "neck.": ((".gn.", ".norm."),),
        "encoder.": _ATTENTION,
        "decoder.": (*_ATTENTION, (".cross_attn.", ".attentions.1.")),
    },
)


def from_release(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict from one of FocalNet-DINO; unknown keys stay as they are.

    Heads whose copies are equal are shared.
    """
    projections = [t for key, t in tensors.items() if re.fullmatch(r"input_proj\.\d+\.0\.weight", key)]
    maps = sum(weight.shape[2] == 1 for weight in projections)
    projected, rest = {}, {}
    for key, tensor in tensors.items():
        if projection := re.fullmatch(r"input_proj\.(\d+)\.(\d)\.(.*)", key):
            number = int(projection[1])
            where = f"convs.{number}" if number < maps else f"extra_convs.{number - maps}"
            projected[f"neck.{where}.{('conv', 'gn')[int(projection[2])]}.{projection[3]}"] = tensor
        else:
            rest[key] = tensor
    return projected | _from_theirs(rest, _RELEASE)


def to_release(tensors: Mapping[str, Tensor], config: DINOConfig) -> dict[str, Tensor]:
    """The inverse of ``from_release``, with all copies that the release's own files have."""
    maps = count(tensors, r"neck\.convs\.\d+\.conv\.weight")
    projected, rest = {}, {}
    for key, tensor in tensors.items():
        if projection := re.fullmatch(r"neck\.(extra_)?convs\.(\d+)\.(conv|gn)\.(.*)", key):
            number = int(projection[2]) + (maps if projection[1] else 0)
            projected[f"input_proj.{number}.{int(projection[3] == 'gn')}.{projection[4]}"] = tensor
        else:
            rest[key] = tensor
    return projected | _to_theirs(rest, config, _RELEASE)


def from_detrex(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict from one of detrex, as ``from_release``; the last head of each kind is the encoder's."""
    heads = {key: head for key in tensors if (head := _HEAD.fullmatch(key))}
    last = {kind: max((int(head[2]) for head in heads.values() if head[1] == kind), default=0) for kind in _BRANCHES}
    apart = {}
    for key, tensor in tensors.items():
        head = heads.get(key)
        if head and int(head[2]) == last[head[1]]:
            key = key.replace(f"{head[1]}_embed.{head[2]}.", f"transformer.enc_out_{head[1]}_embed.", 1)
        apart[key] = tensor
    return _from_theirs(apart, _DETREX)


def to_detrex(tensors: Mapping[str, Tensor], config: DINOConfig) -> dict[str, Tensor]:
    """The inverse of ``from_detrex``, with all copies."""
    theirs: dict[str, Tensor] = {}
    for key, tensor in _to_theirs(tensors, config, _DETREX).items():
        if head := _ENCODER_HEAD.fullmatch(key):
            name = key.replace(f"transformer.enc_out_{head[1]}_embed.", f"{head[1]}_embed.{config.decoder_layers}.", 1)
            theirs |= {name: tensor, f"transformer.decoder.{name}": tensor}
        else:
            theirs[key] = tensor
    return theirs


def _from_theirs(tensors: Mapping[str, Tensor], names: _Names) -> dict[str, Tensor]:
    kinds = {kind: _layers_of(tensors, kind) for kind in _BRANCHES}
    ours: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if _COPY.match(key):
            continue
        if head := _HEAD.fullmatch(key):
            kind, layer, part, name = head.groups()
            if int(layer) in kinds[kind]:
                ours[_branch(kind, kinds[kind].index(int(layer)), part, name)] = tensor
        elif encoder := _ENCODER_HEAD.fullmatch(key):
            kind, part, name = encoder.groups()
            ours[_branch(kind, len(kinds[kind]), part, name)] = tensor
        else:
            ours[names.renamed(key, 1)] = tensor
    return ours


def _to_theirs(tensors: Mapping[str, Tensor], config: DINOConfig, names: _Names) -> dict[str, Tensor]:
    theirs: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if head := re.fullmatch(r"bbox_head\.(cls|reg)_branches\.(\d+)\.(?:(\d)\.)?(weight|bias)", key):
            kind = "class" if head[1] == "cls" else "bbox"
            shared = config.shared_class_head if kind == "class" else config.shared_box_head
            tail = f"layers.{int(head[3]) // 2}.{head[4]}" if head[3] else head[4]
            number, last = int(head[2]), 1 if shared else config.decoder_layers
            if number == last:
                theirs[f"transformer.enc_out_{kind}_embed.{tail}"] = tensor
            for layer in () if number == last else range(config.decoder_layers) if shared else (number,):
                theirs[f"{kind}_embed.{layer}.{tail}"] = tensor
                theirs[f"transformer.decoder.{kind}_embed.{layer}.{tail}"] = tensor
        else:
            theirs[names.renamed(key, 0)] = tensor
    return theirs


def _layers_of(tensors: Mapping[str, Tensor], kind: str) -> list[int]:
    """The decoder layers whose heads are to be kept: all, or the last one where they are the same."""
    found = sorted({int(m[2]) for m in map(_HEAD.fullmatch, tensors) if m and m[1] == kind})
    first = re.compile(rf"{kind}_embed\.\d+\.(.*)")
    tails = {m[1] for m in map(first.fullmatch, tensors) if m}
    last = found[-1:] or [0]
    same = all(
        torch.equal(tensors[f"{kind}_embed.{layer}.{tail}"], tensors[f"{kind}_embed.{last[0]}.{tail}"])
        for layer in found
        for tail in tails
    )
    return last if same else found


def _branch(kind: str, number: int, part: str | None, name: str) -> str:
    place = "" if part is None else f"{2 * int(part)}."  # ReLUs are between
    return f"bbox_head.{_BRANCHES[kind]}.{number}.{place}{name}"


def _read_release(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[int | str, ...]]:
    """As ``from_release``, without outputs that are no class."""
    ours = from_release(tensors)
    outputs = len(ours["bbox_head.cls_branches.0.bias"])
    ids = _PUBLISHED_IDS.get(outputs)
    if ids is None:
        return ours, tuple(range(outputs))
    return ours | {key: tensor[list(ids)] for key, tensor in ours.items() if _is_of_classes(key)}, ids


def _write_release(tensors: Mapping[str, Tensor], config: DINOConfig, ids: tuple[int | str, ...]) -> dict[str, Tensor]:
    """As ``to_release``, each class at the place of its number; outputs between are no class, and never predicted.

    Raises:
        CheckpointError: numbers that do not count classes.
    """
    if ids in ((), tuple(range(config.num_classes))):
        return to_release(tensors, config)
    numbers = [number for number in ids if isinstance(number, int)]
    if len(numbers) < len(ids):
        raise CheckpointError("its category ids are text, but focalnet_dino numbers its outputs: convert it to detrex")
    if min(numbers) < 0 or max(numbers) >= _MOST_OUTPUTS:
        raise CheckpointError(
            f"its category ids go from {min(numbers)} to {max(numbers)}, but focalnet_dino has an output for every "
            "number from 0 on: convert it to detrex or openmmlab instead"
        )
    places, outputs = torch.tensor(numbers), max(numbers) + 1
    placed = {}
    for key, tensor in tensors.items():
        if not _is_of_classes(key):
            continue
        classes, spare = tensor[: config.num_classes], tensor[config.num_classes :]
        rows = outputs + (max(len(spare), 1) if key == _LABELS else 0)
        placed[key] = classes.new_full((rows, *classes.shape[1:]), _NEVER if key.endswith(".bias") else 0.0)
        placed[key][places] = classes
        placed[key][outputs : outputs + len(spare)] = spare
    return to_release({**tensors, **placed}, config)


def _is_of_classes(key: str) -> bool:
    return key == _LABELS or ".cls_branches." in key


def _implied_by_release(traced: Mapping[str, Any]) -> dict[str, Any]:
    """As ``build_focalnet`` of the release: of the backbones with four levels, all but the huge one normalize."""
    normalizes = set(traced["focal_levels"]) == {4} and not traced["post_norm_in_modulation"]
    return {"pad_to_stride": True, "stem_padding": 2, "normalize_modulator": normalizes}


def _options_of_release(content: Any) -> dict[str, Any]:
    arguments = content.get("args") if isinstance(content, Mapping) else None
    state = getattr(arguments, "state", arguments)  # of a Namespace, which is never built
    return DINOConfig.options_of_release(state if isinstance(state, Mapping) else {})


def _options_of_detrex(content: Any) -> dict[str, Any]:
    """Those of its ``dino_r50.py``, on which every published configuration with a FocalNet is built."""
    return {
        "position_temperatures": (10000.0, 10000.0),
        "position_offset": -0.5,
        "denoising_always_divided": True,
        "label_noise": 0.2,
        "box_noise": 1.0,
    }


def _dino(tensors: Mapping[str, Tensor], backbone: FocalNetConfig) -> DINOConfig:
    scales, channels = tensors["level_embed"].shape
    classes = tensors["bbox_head.cls_branches.0.weight"].shape[0]
    attended = tensors["encoder.layers.0.self_attn.attention_weights.bias"].shape[0]  # heads x levels x points
    layers = [r"encoder\.layers\.\d+\.norms\.0\.weight", r"decoder\.layers\.\d+\.norms\.0\.weight"]
    encoder_layers, decoder_layers = (count(tensors, pattern) for pattern in layers)
    if not decoder_layers:
        raise KeyError("decoder.layers.0")
    queries = tensors[_QUERIES].shape[0] if _QUERIES in tensors else DINOConfig.num_queries
    return DINOConfig(
        backbone=backbone,
        num_classes=classes,
        scales=scales,
        num_queries=queries,
        max_per_image=min(DINOConfig.max_per_image, queries * classes),
        channels=channels,
        heads=attended // (scales * DINOConfig.points),
        norm_groups=math.gcd(DINOConfig.norm_groups, channels),
        projection_bias="neck.convs.0.conv.bias" in tensors,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        feedforward_channels=tensors["encoder.layers.0.ffn.layers.0.0.weight"].shape[0],
        shared_class_head=count(tensors, r"bbox_head\.cls_branches\.\d+\.weight") <= 2,
        shared_box_head=count(tensors, r"bbox_head\.reg_branches\.\d+\.0\.weight") <= 2,
        learned_queries=_QUERIES in tensors,
        spare_labels=tensors[_LABELS].shape[0] - classes,
    )


FOCALNET_DINO = ForeignNames(
    name="focalnet_dino",
    mark="transformer.level_embed",
    read=_read_release,
    write=_write_release,
    implied=_implied_by_release,
    options=_options_of_release,
)
DETREX = ForeignNames(
    name="detrex",
    mark="transformer.level_embeds",
    read=lambda tensors: (from_detrex(tensors), ()),
    write=lambda tensors, config, _: to_detrex(tensors, config),
    implied=lambda _: {"pad_to_stride": True, "stem_padding": 2, "normalize_modulator": False},
    options=_options_of_detrex,
)
OPENMMLAB = StateDictLayout(_LABELS, _dino, others=(FOCALNET_DINO, DETREX))
