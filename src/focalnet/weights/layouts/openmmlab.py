"""Detectors and Mask2Former of mmdet (2.x and 3.x), UPerNet of mmseg (0.x and 1.x): our names, without a description.

The names and shapes tell which network it is and how wide; what leaves no trace in them (thresholds, losses, how many
boxes are drawn; of Mask2Former the groups of its norms, points by head, which classes are things) is as published.
A file is ``{"meta": {...}, "state_dict": {...}}``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from colorsys import hsv_to_rgb
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from focalnet.errors import CheckpointError, did_you_mean
from focalnet.models import (
    NETWORKS,
    ATSSConfig,
    CascadeRCNNConfig,
    DenseConfig,
    Mask2FormerConfig,
    MaskRCNNConfig,
    SegmenterConfig,
    SparseRCNNConfig,
    UPerNetConfig,
)
from focalnet.models import backbone_shapes as shapes
from focalnet.models.backbone import FocalNetConfig
from focalnet.models.rcnn import StageConfig
from focalnet.nn.fpn import FPNConfig

NAME = "openmmlab"
CLASSES = "CLASSES"  # where ``meta`` keeps the names of the classes
BACKBONE = "backbone."

# What only one kind of network has.
_MARKS = {
    "sparse_rcnn": "roi_head.bbox_head.0.instance_interactive_conv.dynamic_layer.weight",
    "cascade_mask_rcnn": "roi_head.bbox_head.0.fc_reg.weight",
    "mask_rcnn": "roi_head.bbox_head.fc_reg.weight",
    "atss": "bbox_head.atss_reg.weight",
    "upernet": "decode_head.fpn_bottleneck.conv.weight",
    "mask2former": "panoptic_head.query_feat.weight",
}
_WRAPPERS = re.compile(r"(?:(?:module|_orig_mod|model)\.)*(?=backbone\.)")
# What the FocalNet of mmdet and mmseg is, whatever its options say; a network with a published name is as that says.
_OFFICIAL = {"pad_to_stride": True, "stem_padding": 3, "post_norm": False, "normalize_modulator": False}
# What Mask2Former makes of COCO, by the number of classes: objects; or objects, then stuff.
_COCO: dict[int, dict[str, Any]] = {80: {"segments": "instance"}, 133: {"num_things": 80}}


def unwrap(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]] | None:
    """The tensors of a network without wrappers such as ``module.``, and the keys outside; None for anything else."""
    prefix = next((match[0] for match in map(_WRAPPERS.match, tensors) if match), None)
    if prefix is None or not any(prefix + mark in tensors for mark in _MARKS.values()):
        return None
    inside = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    return inside, [key for key in tensors if not key.startswith(prefix)]


def backbone_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's tensors under its own names."""
    return {key.removeprefix(BACKBONE): tensor for key, tensor in tensors.items() if key.startswith(BACKBONE)}


def infer(
    tensors: Mapping[str, Tensor], *, architecture: str | None = None, settings: Mapping[str, Any] | None = None
) -> tuple[DenseConfig, str | None]:
    """The network that the names and shapes of unwrapped tensors describe, and its published name if it has one.

    Args:
        tensors: by OpenMMLab's names.
        architecture: the name the caller gives; the shapes must agree.
        settings: fields of ``FocalNetConfig`` known from elsewhere.

    Raises:
        CheckpointError: a part is missing, or it is not the architecture named.
    """
    method = next(name for name, mark in _MARKS.items() if mark in tensors)
    traced = shapes.trace(backbone_of(tensors))
    name = published_name(method, traced)
    if architecture not in (None, name):
        known = did_you_mean(str(architecture), NETWORKS)
        raise CheckpointError(f"it is not a {architecture}{known}: it looks like {name or f'another {method}'}")
    implied = asdict(FocalNetConfig.from_dict(NETWORKS[name].shape)) if name else _OFFICIAL
    norms = {int(match[1]) for key in tensors if (match := re.fullmatch(r"backbone\.norm(\d+)\.weight", key))}
    outputs = {"out_indices": tuple(sorted(norms))}
    backbone = FocalNetConfig.from_dict({**implied, **traced, **outputs, **(settings or {})})
    try:
        return _READERS[method](tensors, backbone), name
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"a part of the network is missing or has another shape: {error}") from error


def published_name(method: str, traced: Mapping[str, Any]) -> str | None:
    """The network of ``NETWORKS`` whose backbone has exactly these shapes."""
    for name, variant in NETWORKS.items():
        config = FocalNetConfig.from_dict(variant.shape)
        if variant.method == method and all(
            shapes.agree(field, getattr(config, field), traced[field]) for field in shapes.TRACED if field != "in_chans"
        ):
            return name
    return None


def describe(config: DenseConfig, names: Iterable[str]) -> dict[str, Any]:
    """What a file holds beside ``state_dict`` for mmdet or mmseg to read it."""
    meta: dict[str, Any] = {CLASSES: tuple(names)}
    if isinstance(config, SegmenterConfig):  # mmseg does not read a file without colours: hues by the golden ratio
        hues = (i * 0.618 % 1 for i in range(config.num_classes))
        meta["PALETTE"] = [[round(255 * c) for c in hsv_to_rgb(hue, 0.7, 0.9)] for hue in hues]
    return {"meta": meta}


def class_names(content: Any) -> tuple[str, ...]:
    """The names of the classes that the ``meta`` of a file gives (2.x: ``CLASSES``; 3.x: ``dataset_meta``)."""
    meta = content.get("meta") if isinstance(content, Mapping) else None
    meta = meta if isinstance(meta, Mapping) else {}
    described = meta.get("dataset_meta")
    names = described.get("classes", described.get(CLASSES)) if isinstance(described, Mapping) else meta.get(CLASSES)
    return tuple(map(str, names)) if isinstance(names, (list, tuple)) else ()


def _rcnn(tensors: Mapping[str, Tensor], backbone: FocalNetConfig) -> MaskRCNNConfig | CascadeRCNNConfig:
    cascade = _MARKS["cascade_mask_rcnn"] in tensors
    first = "roi_head.bbox_head.0" if cascade else "roi_head.bbox_head"
    classes = tensors[f"{first}.fc_cls.weight"].shape[0] - 1
    config = (CascadeRCNNConfig if cascade else MaskRCNNConfig)(backbone=backbone, num_classes=classes)
    head = _box_head(tensors, first, classes)
    if cascade and not head["convs"]:  # the two linear layers of mmdet's base file come with its losses
        head |= {"box_loss": "smooth_l1", "smooth_l1_beta": 1.0, "box_loss_weight": 1.0}
    masks = "roi_head.mask_head.0" if cascade else "roi_head.mask_head"
    mask_convs = _count(tensors, rf"{re.escape(masks)}\.convs\.\d+\.conv\.weight")
    return replace(
        config,
        neck=_neck(tensors, config.neck),
        stages=tuple(replace(stage, **head) for stage in config.stages),
        masks=f"{masks}.conv_logits.weight" in tensors,
        mask_convs=mask_convs or config.mask_convs,
        mask_channels=tensors[f"{masks}.convs.0.conv.weight"].shape[0] if mask_convs else config.mask_channels,
    )


def _box_head(tensors: Mapping[str, Tensor], prefix: str, classes: int) -> dict[str, Any]:
    convs = _count(tensors, rf"{re.escape(prefix)}\.shared_convs\.\d+\.conv\.weight")
    channels = tensors[f"{prefix}.shared_convs.0.conv.weight"].shape[0] if convs else StageConfig.conv_channels
    return {
        "convs": convs,
        "conv_channels": channels,
        "fcs": _count(tensors, rf"{re.escape(prefix)}\.shared_fcs\.\d+\.weight"),
        "fc_channels": tensors[f"{prefix}.fc_cls.weight"].shape[1],
        "class_agnostic": tensors[f"{prefix}.fc_reg.weight"].shape[0] == 4 != 4 * classes,
    }


def _atss(tensors: Mapping[str, Tensor], backbone: FocalNetConfig) -> ATSSConfig:
    return ATSSConfig(
        backbone=backbone,
        neck=_neck(tensors, ATSSConfig.neck),
        num_classes=tensors["bbox_head.atss_cls.weight"].shape[0],
        convs=_count(tensors, r"bbox_head\.cls_convs\.\d+\.conv\.weight"),
        channels=tensors["bbox_head.atss_cls.weight"].shape[1],
    )


def _sparse_rcnn(tensors: Mapping[str, Tensor], backbone: FocalNetConfig) -> SparseRCNNConfig:
    proposals, channels = tensors["rpn_head.init_proposal_features.weight"].shape
    first = "roi_head.bbox_head.0"
    return SparseRCNNConfig(
        backbone=backbone,
        neck=_neck(tensors, SparseRCNNConfig.neck),
        num_classes=tensors[f"{first}.fc_cls.weight"].shape[0],
        max_per_image=proposals,
        proposals=proposals,
        stages=_count(tensors, r"roi_head\.bbox_head\.\d+\.fc_cls\.weight"),
        feedforward_channels=tensors[f"{first}.ffn.layers.0.0.weight"].shape[0],
        dynamic_channels=tensors[f"{first}.instance_interactive_conv.dynamic_layer.weight"].shape[0] // (2 * channels),
        class_layers=_count(tensors, r"roi_head\.bbox_head\.0\.cls_fcs\.\d+\.bias"),  # only the norms have a bias
        box_layers=_count(tensors, r"roi_head\.bbox_head\.0\.reg_fcs\.\d+\.bias"),
    )


def _upernet(tensors: Mapping[str, Tensor], backbone: FocalNetConfig) -> UPerNetConfig:
    classes, channels = tensors["decode_head.conv_seg.weight"].shape[:2]
    seen = [backbone.channels[i] for i in backbone.out_indices or range(len(backbone.depths))]
    auxiliary_channels, auxiliary_input = tensors["auxiliary_head.convs.0.conv.weight"].shape[:2]
    return UPerNetConfig(
        backbone=backbone,
        num_classes=classes,
        channels=channels,
        auxiliary_channels=auxiliary_channels,
        auxiliary_index=seen.index(auxiliary_input) - len(seen),
    )


def _mask2former(tensors: Mapping[str, Tensor], backbone: FocalNetConfig) -> Mask2FormerConfig:
    queries, channels = tensors["panoptic_head.query_feat.weight"].shape
    classes = tensors["panoptic_head.cls_embed.weight"].shape[0] - 1
    levels = tensors["panoptic_head.level_embed.weight"].shape[0]
    encoder, decoder = "panoptic_head.pixel_decoder.encoder.layers", "panoptic_head.transformer_decoder.layers"
    looks = tensors[f"{encoder}.0.self_attn.attention_weights.bias"].shape[0]  # heads x levels x points
    return Mask2FormerConfig(
        backbone=backbone,
        num_classes=classes,
        num_queries=queries,
        channels=channels,
        heads=looks // (levels * Mask2FormerConfig.points),
        norm_groups=math.gcd(Mask2FormerConfig.norm_groups, channels),
        levels=levels,
        encoder_layers=_count(tensors, rf"{re.escape(encoder)}\.\d+\.norms\.0\.weight"),
        encoder_hidden=tensors[f"{encoder}.0.ffn.layers.0.0.weight"].shape[0],
        decoder_layers=_count(tensors, rf"{re.escape(decoder)}\.\d+\.norms\.0\.weight"),
        decoder_hidden=tensors[f"{decoder}.0.ffn.layers.0.0.weight"].shape[0],
        **_COCO.get(classes, {}),
    )


def _neck(tensors: Mapping[str, Tensor], published: FPNConfig) -> FPNConfig:
    convs = _count(tensors, r"neck\.fpn_convs\.\d+\.conv\.weight")
    levels = convs if published.extra == "conv" else max(published.levels, convs)  # pooled levels have no weights
    return replace(published, channels=tensors["neck.fpn_convs.0.conv.weight"].shape[0], levels=levels)


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return sum(re.fullmatch(pattern, key) is not None for key in tensors)


_READERS: dict[str, Callable[[Mapping[str, Tensor], FocalNetConfig], DenseConfig]] = {
    "mask_rcnn": _rcnn,
    "cascade_mask_rcnn": _rcnn,
    "atss": _atss,
    "sparse_rcnn": _sparse_rcnn,
    "upernet": _upernet,
    "mask2former": _mask2former,
}
