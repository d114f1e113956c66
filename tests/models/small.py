"""Small detectors and segmenters, and data for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from focalnet import registry
from focalnet.models import Mask2FormerConfig, UPerNetConfig
from focalnet.models.base import DetectorConfig
from focalnet.models.rcnn import RPNConfig, StageConfig
from focalnet.models.rcnn.config import released_cascade
from focalnet.nn.fpn import FPNConfig
from focalnet.samples import ObjectTarget, Segments

METHODS = ("mask_rcnn", "cascade_mask_rcnn", "atss", "sparse_rcnn", "dino")  # the detectors
SIZES = [(61, 90), (64, 75)]
ORIGINALS = [(122, 180), (32, 38)]
_BACKBONE = {"embed_dim": 8, "depths": (1, 1, 1, 1), "focal_levels": (2, 2, 2, 2), "focal_windows": (3, 3, 3, 3)}
_RPN = RPNConfig(candidates=60, candidates_in_training=60, proposals=30, proposals_in_training=30)
_RCNN = {"rpn": _RPN, "neck": FPNConfig(channels=16), "mask_convs": 1, "mask_channels": 16}
_HEADS: dict[str, dict[str, Any]] = {
    "mask_rcnn": {**_RCNN, "stages": (StageConfig(fc_channels=16),)},
    "cascade_mask_rcnn": {
        **_RCNN,
        "stages": tuple(replace(stage, conv_channels=8, fc_channels=16) for stage in released_cascade()),
    },
    "atss": {"neck": FPNConfig(channels=16, extra="conv"), "convs": 1, "channels": 64},
    "sparse_rcnn": {
        "neck": FPNConfig(channels=16, levels=4),
        "proposals": 12,
        "max_per_image": 12,
        "stages": 2,
        "feedforward_channels": 16,
        "dynamic_channels": 4,
    },
    "dino": {
        **{"channels": 16, "heads": 2, "norm_groups": 4, "num_queries": 12, "max_per_image": 12},
        **{"encoder_layers": 1, "decoder_layers": 2, "feedforward_channels": 16, "denoising_queries": 4},
    },
    "upernet": {"channels": 8, "auxiliary_channels": 4},
    "mask2former": {
        **{"channels": 16, "heads": 2, "norm_groups": 4, "encoder_layers": 1, "encoder_hidden": 16},
        **{"decoder_layers": 4, "decoder_hidden": 16, "num_queries": 6, "train_points": 60},
    },
}


def options_of(method: str) -> dict[str, Any]:
    """Options that make a network of this method narrow; ``"classifier"`` has only a backbone."""
    return {**_BACKBONE, **_HEADS.get(method, {})}


def config(method: str, **options: Any) -> DetectorConfig:
    """A narrow detector of this method with three classes."""
    assert method in METHODS
    options = {"num_classes": 3, "score_threshold": 0.0, **options_of(method), **options}
    found = registry.configure(f"{method}_focalnet_tiny_srf", **options)
    assert isinstance(found, DetectorConfig)
    return found


def upernet(**options: Any) -> UPerNetConfig:
    """A narrow UPerNet with three classes."""
    options = {"num_classes": 3, **options_of("upernet"), **options}
    found = registry.configure("upernet_focalnet_tiny_srf", **options)
    assert isinstance(found, UPerNetConfig)
    return found


def mask2former(**options: Any) -> Mask2FormerConfig:
    """A narrow Mask2Former with two thing classes and one stuff class."""
    options = {"num_classes": 3, "num_things": 2, "object_threshold": 0.0, **options_of("mask2former"), **options}
    config = registry.configure("mask2former_focalnet_tiny_srf", **options)
    assert isinstance(config, Mask2FormerConfig)
    return config


def segments(count: int) -> Segments:
    """The objects of ``target(count)`` as mask targets."""
    return target(count).segments()


def images() -> torch.Tensor:
    """A batch of two images of ``SIZES``, padded."""
    batch = torch.zeros(2, 3, 64, 96)
    for i, (height, width) in enumerate(SIZES):
        batch[i, :, :height, :width] = torch.randn(3, height, width)
    return batch


def target(count: int) -> ObjectTarget:
    """A target with ``count`` objects at fixed positions."""
    boxes = torch.tensor([[5.0, 6.0, 40.0, 30.0], [20.0, 10.0, 61.0, 55.0], [44.5, 30.0, 60.0, 50.0]])[:count]
    masks = torch.zeros(count, 64, 96, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    return ObjectTarget(boxes=boxes, labels=torch.arange(count), masks=masks, ignored=torch.zeros(0, 4))
