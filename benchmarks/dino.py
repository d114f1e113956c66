"""Compares DINO on the CPU with transformers' Deformable DETR over the same backbone, interleaved in one run.

    python benchmarks/dino.py [inference] [training] [--rounds 5] [--out results.json]

Both have FocalNet-T SRF, four scales, 900 queries that the encoder proposes, six encoder and six decoder layers of 256
channels, boxes refined by every decoder layer, and losses of all of them. Deformable DETR has no denoising queries, so
DINO is measured without them, too: then both have the same work. transformers samples by grid_sample here, since its
compiled kernel is for CUDA. Weights are random, since speed does not depend on them.
"""

from __future__ import annotations

from typing import Any

import studies
import torch
from studies import Call, Engines
from torch import Tensor, nn
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, TimmBackboneConfig

import focalnet
from focalnet.samples import Batch, ImageInfo, ObjectTarget

CLASSES, OBJECTS, QUERIES, HIDDEN = 80, 12, 900, 2048
SIZE = (800, 1216)
OURS, SAME_WORK, THEIRS = "focalnet", "focalnet, no denoising", "transformers, timm's FocalNet-T"


def inference() -> Engines:
    """One image to 300 boxes."""
    image = torch.randn(1, 3, *SIZE)
    return {OURS: lambda: _detect(_ours(), image), THEIRS: lambda: _their_detect(_theirs(), image)}


def training() -> Engines:
    """Forward, matching and losses of all layers, backward; one image with a dozen objects."""
    image, labels = torch.randn(1, 3, *SIZE), torch.randint(CLASSES, (OBJECTS,))
    centers, sides = 0.3 + 0.4 * torch.rand(OBJECTS, 2), 0.05 + 0.25 * torch.rand(OBJECTS, 2)
    corners = torch.cat([centers - sides / 2, centers + sides / 2], 1) * torch.tensor(SIZE[::-1]).repeat(2)
    target = ObjectTarget(boxes=corners, labels=labels, masks=None, ignored=torch.zeros(0, 4))
    theirs = {"boxes": torch.cat([centers, sides], 1), "class_labels": labels}
    return {
        OURS: lambda: _step(_ours(), image, target),
        SAME_WORK: lambda: _step(_ours(denoising_queries=0), image, target),
        THEIRS: lambda: _their_step(_theirs(), image, theirs),
    }


STUDIES = {f.__name__: f for f in (inference, training)}


def _ours(**options: Any) -> nn.Module:
    return focalnet.create_model(
        "dino_focalnet_tiny_srf", num_classes=CLASSES, scales=4, num_queries=QUERIES, **options
    )


def _theirs() -> nn.Module:
    config = DeformableDetrConfig(
        backbone_config=TimmBackboneConfig(backbone="focalnet_tiny_srf", out_indices=(1, 2, 3)),
        num_labels=CLASSES,
        num_queries=QUERIES,
        num_feature_levels=4,
        encoder_ffn_dim=HIDDEN,
        decoder_ffn_dim=HIDDEN,
        dropout=0.0,
        with_box_refine=True,
        two_stage=True,
        auxiliary_loss=True,
        disable_custom_kernels=True,
    )
    return DeformableDetrForObjectDetection(config)


def _detect(model: Any, image: Tensor) -> Call:
    batch = image.contiguous(memory_format=torch.channels_last)
    model.eval()

    def detect() -> None:
        with torch.inference_mode():
            (result,) = model.predict(batch, [SIZE], [SIZE])
            assert len(result.boxes) == 300, "not the work that was meant"

    return detect


def _their_detect(model: Any, image: Tensor) -> Call:
    model.eval()

    def detect() -> None:
        with torch.inference_mode():
            out = model(image)
            out.logits.sigmoid().flatten(1).topk(300)

    return detect


def _step(model: Any, image: Tensor, target: ObjectTarget) -> Call:
    batch = image.contiguous(memory_format=torch.channels_last)
    model.train()

    def step() -> None:
        model.zero_grad(set_to_none=True)
        losses = model.loss(Batch(batch, [SIZE], [target], [ImageInfo("noise", SIZE)]))
        torch.stack(list(losses.values())).sum().backward()

    return step


def _their_step(model: nn.Module, image: Tensor, target: dict[str, Tensor]) -> Call:
    model.train()

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(pixel_values=image, labels=[target]).loss.backward()

    return step


if __name__ == "__main__":
    studies.run(STUDIES, __doc__, "dino_cpu", ("torch", "transformers", "timm"))
