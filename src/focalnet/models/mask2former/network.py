"""Mask2Former (Cheng et al., CVPR 2022, arXiv 2112.01527): semantic, instance and panoptic segmentation.

Shapes: B batch, Q queries, N classes, h and w height and width of the finest feature map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from focalnet.models.backbone import FocalNet
from focalnet.models.base import ScoresPixels
from focalnet.models.mask2former import postprocess as results
from focalnet.models.mask2former import tensors
from focalnet.models.mask2former.config import Mask2FormerConfig
from focalnet.models.mask2former.head import Mask2FormerHead
from focalnet.models.mask2former.loss import losses
from focalnet.models.targets import checked_segments
from focalnet.ops.resizing import OriginalSize
from focalnet.results import Detections, PanopticMap, SemanticMap
from focalnet.samples import Batch, LabelMapTarget, ObjectTarget, PanopticTarget, Size


@dataclass(frozen=True)
class Mask2FormerOutputs:
    """Predictions of a decoder layer for each query.

    Args:
        logits: ``(B, Q, N + 1)``, class logits; the last class is "no object".
        masks: ``(B, Q, h, w)``, mask logits.
        size: height and width of the input.
    """

    logits: Tensor
    masks: Tensor
    size: Size


class Mask2Former(ScoresPixels[Mask2FormerConfig, Mask2FormerOutputs]):
    """Each query predicts one segment: a class and a mask. State dicts have mmdet's names."""

    scores_are_logits: ClassVar[bool] = False

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = FocalNet(config.backbone)
        self.panoptic_head = Mask2FormerHead(config, self.backbone.feature_info)

    def forward(self, images_BCHW: Tensor) -> Mask2FormerOutputs:
        return self._layers(images_BCHW, every_layer=False)[-1]

    def loss(self, batch: Batch[ObjectTarget | LabelMapTarget | PanopticTarget]) -> dict[str, Tensor]:
        targets = checked_segments(batch, self.config.num_classes)
        return losses(self.config, self.training_outputs(batch.images), targets)

    def training_outputs(self, images_BCHW: Tensor) -> list[Mask2FormerOutputs]:
        """Predictions before the first decoder layer and after each."""
        return self._layers(images_BCHW, every_layer=True)

    def class_scores(self, images_BCHW: Tensor) -> Tensor:
        """See the base class: the sum over queries of class probability times mask probability."""
        outputs: Mask2FormerOutputs = self(images_BCHW)
        masks = F.interpolate(outputs.masks, outputs.size, mode="bilinear")
        return results.class_scores(outputs.logits, masks)

    def predict_tensors(self, images_BCHW: Tensor, sizes_B2: Tensor, original_sizes_B2: Tensor) -> dict[str, Tensor]:
        outputs: Mask2FormerOutputs = self(images_BCHW)
        config, original = self.config, OriginalSize(sizes_B2, original_sizes_B2, outputs.size)
        queries = outputs.logits, outputs.masks, original
        if config.segments == "semantic":
            return tensors.semantic(*queries)
        if config.segments == "instance":
            return tensors.instances(*queries, config.things, config.max_per_image)
        return tensors.panoptic(*queries, config.things, config.object_threshold, config.overlap_threshold)

    def postprocess(
        self, outputs: Mask2FormerOutputs, sizes: Sequence[Size], original_sizes: Sequence[Size]
    ) -> list[SemanticMap] | list[Detections] | list[PanopticMap]:
        queries = [
            results.Queries(logits, masks, outputs.size, size, original)
            for logits, masks, size, original in zip(outputs.logits, outputs.masks, sizes, original_sizes, strict=True)
        ]
        names, config = self.class_names, self.config
        if config.segments == "semantic":
            return [results.semantic(q, names) for q in queries]
        if config.segments == "instance":
            return [results.instances(q, config.things, config.max_per_image, names) for q in queries]
        thresholds = config.object_threshold, config.overlap_threshold
        return [results.panoptic(q, config.things, *thresholds, names) for q in queries]

    def _layers(self, images_BCHW: Tensor, *, every_layer: bool) -> list[Mask2FormerOutputs]:
        features = list(self.backbone(images_BCHW).values())
        height, width = images_BCHW.shape[2:]
        predictions = self.panoptic_head(features, every_layer=every_layer)
        return [Mask2FormerOutputs(logits, masks, (height, width)) for logits, masks in predictions]
