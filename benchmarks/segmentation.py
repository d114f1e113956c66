"""Compares UPerNet and Mask2Former on the CPU with those of transformers, interleaved in one run.

    python benchmarks/segmentation.py [upernet_inference] [upernet_training] [mask2former_training] [--rounds 5]

UPerNet: our network (FocalNet-T LRF as published, kernels from 9), the same network as transformers' UPerNet on timm's
FocalNet, and transformers' UPerNet on Swin-T. Mask2Former: ours on FocalNet-T, transformers' on Swin-T. In training,
both compute the auxiliary head and all losses. Images have 512 x 512 pixels. Weights are random, since speed does not
depend on them.
"""

from __future__ import annotations

from typing import Any

import studies
import torch
from studies import Call, Engines
from torch import Tensor, nn
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
    TimmBackbone,
    TimmBackboneConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

import focalnet
from focalnet.ops.segments import boxes_around
from focalnet.samples import Batch, LabelMapTarget, ObjectTarget

UPERNET_CLASSES, MASK2FORMER_CLASSES, SEGMENTS = 150, 133, 12  # as in ADE20K and COCO; segments of an image
SIDE = 512
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def upernet_inference() -> Engines:
    """One image to logits of its size."""
    image = torch.randn(1, 3, SIDE, SIDE)
    return {
        "focalnet": lambda: _scores(_ours("upernet"), image),
        "focalnet, optimized": lambda: _scores(_optimized(_ours("upernet")), image),
        "transformers, timm's FocalNet-T": lambda: _logits(_their_upernet("timm"), image),
        "transformers, Swin-T": lambda: _logits(_their_upernet("swin"), image),
    }


def upernet_training() -> Engines:
    """Forward, losses of both heads, backward; two images."""
    images, labels = torch.randn(2, 3, SIDE, SIDE), torch.randint(UPERNET_CLASSES, (2, SIDE, SIDE))
    given = {"pixel_values": images, "labels": labels}
    return {
        "focalnet": lambda: _our_step(_ours("upernet"), images, [LabelMapTarget(one) for one in labels]),
        "transformers, timm's FocalNet-T": lambda: _their_step(_their_upernet("timm"), given),
        "transformers, Swin-T": lambda: _their_step(_their_upernet("swin"), given),
    }


def mask2former_training() -> Engines:
    """Forward, matching and losses of all layers, backward; one image with a dozen segments."""
    image = torch.randn(1, 3, SIDE, SIDE)
    labels, masks = torch.randint(MASK2FORMER_CLASSES, (SEGMENTS,)), torch.zeros(SEGMENTS, SIDE, SIDE, dtype=torch.bool)
    edges = torch.linspace(0, SIDE, SEGMENTS + 1).long().tolist()
    for mask, top, bottom in zip(masks, edges[:-1], edges[1:], strict=True):
        mask[top:bottom] = True
    given = {"pixel_values": image, "mask_labels": [masks.float()], "class_labels": [labels]}
    config = Mask2FormerConfig(backbone_config=_swin(), num_labels=MASK2FORMER_CLASSES)
    return {
        "focalnet": lambda: _our_step(
            _ours("mask2former"), image, [ObjectTarget(boxes_around(masks), labels, masks, torch.zeros(0, 4))]
        ),
        "transformers, Swin-T": lambda: _their_step(Mask2FormerForUniversalSegmentation(config), given),
    }


STUDIES = {f.__name__: f for f in (upernet_inference, upernet_training, mask2former_training)}


def _ours(method: str) -> nn.Module:
    classes = UPERNET_CLASSES if method == "upernet" else MASK2FORMER_CLASSES
    return focalnet.create_model(f"{method}_focalnet_tiny_lrf", num_classes=classes)


def _optimized(model: nn.Module) -> nn.Module:
    focalnet.optimize(model)
    return model


def _swin() -> SwinConfig:
    return SwinConfig(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7, out_features=STAGES)


def _their_upernet(backbone: str) -> nn.Module:
    timm = TimmBackboneConfig(backbone="focalnet_tiny_lrf", out_indices=(0, 1, 2, 3))
    config = UperNetConfig(
        backbone_config=timm if backbone == "timm" else _swin(), num_labels=UPERNET_CLASSES, hidden_size=512
    )
    model = UperNetForSemanticSegmentation(config)
    if backbone == "timm":  # with the kernels of the published segmenter, which the configuration cannot say
        model.backbone = TimmBackbone(timm, focal_windows=(9, 9, 9, 9))
    return model


def _scores(model: nn.Module, image: Tensor) -> Call:
    seen = image.contiguous(memory_format=torch.channels_last)
    model.eval()

    def call() -> None:
        with torch.inference_mode():
            model.class_scores(seen)  # type: ignore[operator]

    return call


def _logits(model: nn.Module, image: Tensor) -> Call:
    model.eval()

    def call() -> None:
        with torch.inference_mode():
            model(pixel_values=image)

    return call


def _our_step(model: nn.Module, images: Tensor, targets: Any) -> Call:
    seen = images.contiguous(memory_format=torch.channels_last)
    model.train()

    def step() -> None:
        model.zero_grad(set_to_none=True)
        losses = model.loss(Batch(seen, [], targets, []))  # type: ignore[operator]
        torch.stack([value for name, value in losses.items() if "loss" in name]).sum().backward()

    return step


def _their_step(model: nn.Module, given: dict[str, Any]) -> Call:
    model.train()

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(**given).loss.backward()

    return step


if __name__ == "__main__":
    studies.run(STUDIES, __doc__, "segmentation_cpu", ("torch", "timm", "transformers"))
