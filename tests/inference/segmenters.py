"""Segmenters that are always right: class 0 is where red is the brightest channel, 1 green, 2 blue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.ops import masks_to_boxes

from focalnet import FocalNetConfig
from focalnet.card import ModelCard, Preprocessing
from focalnet.models.base import DenseConfig, ScoresPixels
from focalnet.results import Detections, PanopticMap, Segment, SemanticMap
from focalnet.samples import Batch, Size

NAMES = ("red", "green", "blue")
TRUNK = FocalNetConfig(
    embed_dim=8, depths=(1, 1, 1), focal_levels=(1, 1, 1), focal_windows=(3, 3, 3), out_indices=(0, 1, 2)
)


@dataclass(frozen=True, kw_only=True)
class ColoursConfig(DenseConfig):
    segments: Any = "semantic"
    things: int = 2

    @property
    def output(self) -> Any:
        return self.segments

    @classmethod
    def from_official(cls, model: Mapping[str, Any]) -> Any:
        raise AssertionError("this network only predicts")

    def build(self) -> Colours:
        return Colours(self)


class Colours(ScoresPixels[ColoursConfig, Tensor]):
    def __init__(self, config: ColoursConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = config.backbone.build()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images_BCHW: Tensor) -> Tensor:
        self.seen.append(tuple(images_BCHW.shape))
        return 9 * images_BCHW

    def class_scores(self, images_BCHW: Tensor) -> Tensor:
        return self(images_BCHW)

    def loss(self, batch: Batch[Any]) -> dict[str, Tensor]:
        raise AssertionError("this network only predicts")

    def postprocess(self, outputs: Tensor, sizes: Sequence[Size], original_sizes: Sequence[Size]) -> list[Any]:
        pairs = zip(outputs, sizes, original_sizes, strict=True)
        return [self._result(scores[:, :h, :w], size) for scores, (h, w), size in pairs]

    def _result(self, scores: Tensor, size: Size) -> SemanticMap | Detections | PanopticMap:
        labels = F.interpolate(scores[None], size, mode="bilinear")[0].argmax(0)
        present = labels.unique()
        if self.config.segments == "semantic":
            return SemanticMap(labels)
        if self.config.segments == "panoptic":
            segments = [
                Segment(i + 1, i, i < self.config.things, 0.9, int((labels == i).sum())) for i in present.tolist()
            ]
            return PanopticMap((labels + 1).int(), tuple(segments))
        masks = labels == present[:, None, None]
        scores_of = torch.linspace(0.9, 0.2, len(present))
        return Detections(masks_to_boxes(masks), scores_of, present, masks=masks, size=size)


def colours(segments: str = "semantic", *, size: int = 64, divisor: int = 1, num_classes: int = 3) -> Colours:
    torch.manual_seed(0)
    config = ColoursConfig(backbone=TRUNK, num_classes=num_classes, size_divisor=divisor, segments=segments)
    network = config.build().eval()
    grey = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    preprocessing = Preprocessing(image_size=size, max_size=4 * size, **grey)
    network.card = ModelCard(
        name="colours.test", class_names=NAMES if num_classes == 3 else (), preprocessing=preprocessing
    )
    return network


def blocks(width: int, height: int, seed: int = 0, block: int = 16) -> tuple[Image.Image, Tensor]:
    """An image of colored blocks, and the class of each of its pixels."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 3, (-(-height // block), -(-width // block)))
    labels = small.repeat(block, 0).repeat(block, 1)[:height, :width]
    pixels = generator.integers(0, 90, (height, width, 3), np.uint8)
    pixels[np.arange(height)[:, None], np.arange(width)[None], labels] += 120
    return Image.fromarray(pixels), torch.from_numpy(labels)
