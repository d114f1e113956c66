"""DINO of mmdet by its state dict, and the names of FocalNet-DINO and IDEA-Research/DINO in both directions.

Ours are mmdet's. The release keeps one copy of a head for each decoder layer, also of one that all share, and each
twice: the copies at the top are those that count when it loads a file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from focalnet.models.backbone import FocalNetConfig
from focalnet.models.base import StateDictLayout
from focalnet.models.dino.config import DINOConfig
from focalnet.models.openmmlab import count

_QUERIES, _LABELS = "query_embedding.weight", "dn_query_generator.label_embedding.weight"
_HEAD = re.compile(r"(class|bbox)_embed\.(\d+)\.(?:layers\.(\d)\.)?(weight|bias)")
_COCO_IDS = 91  # the release's classes are the ids of COCO's categories, from 1
_UNUSED_COCO_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
_COPY = re.compile(r"transformer\.decoder\.(?:class|bbox)_embed\.")

# Ours, the release's: the first that matches counts, in both directions.
_NAMES = (
    ("backbone.", "backbone.0."),
    ("level_embed", "transformer.level_embed"),
    ("query_embedding.", "transformer.tgt_embed."),
    ("memory_trans_fc.", "transformer.enc_output."),
    ("memory_trans_norm.", "transformer.enc_output_norm."),
    ("dn_query_generator.label_embedding.", "label_enc."),
    ("encoder.", "transformer.encoder."),
    ("decoder.", "transformer.decoder."),
)
# Of their parts; norms are numbered in the order in which they are applied.
_MLP = ((".ffn.layers.0.0.", ".linear1."), (".ffn.layers.1.", ".linear2."))
_PARTS = {
    "encoder.": (*_MLP, (".norms.0.", ".norm1."), (".norms.1.", ".norm2.")),
    "decoder.": (
        *((".self_attn.attn.", ".self_attn."), *_MLP),
        *((".norms.0.", ".norm2."), (".norms.1.", ".norm1."), (".norms.2.", ".norm3.")),
    ),
}
_ENCODER_HEADS = {"class": "transformer.enc_out_class_embed", "bbox": "transformer.enc_out_bbox_embed"}
_BRANCHES = {"class": "cls_branches", "bbox": "reg_branches"}


def from_release(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict from one of the release; unknown keys stay as they are.

    Heads whose copies are equal are shared.
    """
    kinds = {kind: _layers_of(tensors, kind) for kind in _BRANCHES}
    projections = [t for key, t in tensors.items() if re.fullmatch(r"input_proj\.\d+\.0\.weight", key)]
    maps = sum(weight.shape[2] == 1 for weight in projections)
    ours: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if _COPY.match(key):
            continue
        if head := _HEAD.fullmatch(key):
            kind, layer, part, name = head.groups()
            if int(layer) in kinds[kind]:
                number = kinds[kind].index(int(layer))
                ours[_branch(kind, number, part, name)] = tensor
        elif projection := re.fullmatch(r"input_proj\.(\d+)\.(\d)\.(.*)", key):
            number = int(projection[1])
            where = f"convs.{number}" if number < maps else f"extra_convs.{number - maps}"
            ours[f"neck.{where}.{('conv', 'gn')[int(projection[2])]}.{projection[3]}"] = tensor
        elif encoder := re.fullmatch(r"transformer\.enc_out_(class|bbox)_embed\.(?:layers\.(\d)\.)?(weight|bias)", key):
            kind, part, name = encoder.groups()
            ours[_branch(kind, len(kinds[kind]), part, name)] = tensor
        else:
            ours[_renamed(key, 1)] = tensor
    return ours


def to_release(tensors: Mapping[str, Tensor], config: DINOConfig) -> dict[str, Tensor]:
    """The inverse of ``from_release``, with all copies that the release's own files have."""
    maps = count(tensors, r"neck\.convs\.\d+\.conv\.weight")
    theirs: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if projection := re.fullmatch(r"neck\.(extra_)?convs\.(\d+)\.(conv|gn)\.(.*)", key):
            number = int(projection[2]) + (maps if projection[1] else 0)
            theirs[f"input_proj.{number}.{int(projection[3] == 'gn')}.{projection[4]}"] = tensor
        elif head := re.fullmatch(r"bbox_head\.(cls|reg)_branches\.(\d+)\.(?:(\d)\.)?(weight|bias)", key):
            kind = "class" if head[1] == "cls" else "bbox"
            shared = config.shared_class_head if kind == "class" else config.shared_box_head
            tail = f"layers.{int(head[3]) // 2}.{head[4]}" if head[3] else head[4]
            number, last = int(head[2]), 1 if shared else config.decoder_layers
            if number == last:
                theirs[f"{_ENCODER_HEADS[kind]}.{tail}"] = tensor
            for layer in () if number == last else range(config.decoder_layers) if shared else (number,):
                theirs[f"{kind}_embed.{layer}.{tail}"] = tensor
                theirs[f"transformer.decoder.{kind}_embed.{layer}.{tail}"] = tensor
        else:
            theirs[_renamed(key, 0)] = tensor
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


def _renamed(key: str, source: int) -> str:
    """A key by the other names; ``source`` is 0 for ours, 1 for the release's."""
    for names in _NAMES:
        if not key.startswith(names[source]):
            continue
        key = names[1 - source] + key.removeprefix(names[source])
        for parts in _PARTS.get(names[0], ()):
            if parts[source] in key and ".layers." in key:
                return key.replace(parts[source], parts[1 - source], 1)
        return key
    return key


def _dino(tensors: Mapping[str, Tensor], backbone: FocalNetConfig) -> DINOConfig:
    scales, channels = tensors["level_embed"].shape
    classes = tensors["bbox_head.cls_branches.0.weight"].shape[0]
    attended = tensors["encoder.layers.0.self_attn.attention_weights.bias"].shape[0]  # heads x levels x points
    layers = count(tensors, r"decoder\.layers\.\d+\.norms\.0\.weight")
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
        encoder_layers=count(tensors, r"encoder\.layers\.\d+\.norms\.0\.weight"),
        decoder_layers=layers,
        feedforward_channels=tensors["encoder.layers.0.ffn.layers.0.0.weight"].shape[0],
        shared_class_head=count(tensors, r"bbox_head\.cls_branches\.\d+\.weight") <= 2,
        shared_box_head=count(tensors, r"bbox_head\.reg_branches\.\d+\.0\.weight") <= 2,
        learned_queries=_QUERIES in tensors,
        spare_labels=tensors[_LABELS].shape[0] - classes,
    )


def _read_release(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As ``from_release``; of COCO's 91 ids, ten of which are not used, the 80 classes are kept."""
    ours = from_release(tensors)
    if ours["bbox_head.cls_branches.0.bias"].shape != (_COCO_IDS,):
        return ours
    ids = torch.tensor([number for number in range(1, _COCO_IDS) if number not in _UNUSED_COCO_IDS])
    classes = {key: tensor for key, tensor in ours.items() if key == _LABELS or ".cls_branches." in key}
    return ours | {key: tensor[ids] for key, tensor in classes.items()}


OPENMMLAB = StateDictLayout(_LABELS, _dino, other_mark="transformer.enc_output_norm.weight", from_other=_read_release)
