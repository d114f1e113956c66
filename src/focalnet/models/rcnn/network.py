"""Faster, Mask and Cascade R-CNN: one network with one or more stages of classification and box refinement.

Shapes: B batch, K regions of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from focalnet.models.backbone import FocalNet
from focalnet.models.base import Model, check_sizes
from focalnet.models.rcnn.config import RCNNConfig, SamplingConfig
from focalnet.models.rcnn.heads import BOX_GRID, MASK_GRID, BoxHead, MaskHead, own_class
from focalnet.models.rcnn.loss import losses
from focalnet.models.rcnn.rpn import RPN, Proposals, RPNOutputs
from focalnet.models.targets import checked_objects
from focalnet.nn.feature_info import FeatureInfo
from focalnet.ops import assign, boxes, rois
from focalnet.results import Detections
from focalnet.samples import Batch, ObjectTarget, Size

_LEAST_SIDE = 0.01  # pixels of a box whose mask an exported network predicts


@dataclass(frozen=True)
class RCNNOutputs:
    """Outputs of the network for a batch.

    Args:
        pyramid: feature maps that regions are pooled from, finest first.
        rpn: outputs of the RPN.
        proposals: proposals of each image.
        regions: ``(K, 5)``: index in the batch, box; the input of the last stage.
        scores: ``(K, classes + 1)``, probabilities, background last.
        boxes: ``(K, 1 | classes, 4)``, predicted boxes in pixels of the input.
    """

    pyramid: list[Tensor]
    rpn: RPNOutputs
    proposals: list[Proposals]
    regions: Tensor
    scores: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class StageOutputs:
    """Outputs of a stage for the regions sampled for its losses.

    Args:
        regions: ``(K, 5)``: index in the batch, box.
        matched: ``(K,)``, index of each region's object among all objects of the batch; -1 for background.
        logits: ``(K, classes + 1)``, background last.
        deltas: ``(K, 1 | classes, 4)``.
        mask_logits: ``(P, classes, 28, 28)`` of the P positive regions, in order; None without masks.
    """

    regions: Tensor
    matched: Tensor
    logits: Tensor
    deltas: Tensor
    mask_logits: Tensor | None


@dataclass(frozen=True)
class RCNNTrainingOutputs:
    """Inputs of the losses: the RPN's outputs, which anchors of each image to train on ``(B, N)``, and the stages'."""

    rpn: RPNOutputs
    inside: Tensor
    stages: list[StageOutputs]


class RoIHeads(nn.Module):
    """The box and mask heads of all stages, with RoI pooling."""

    def __init__(self, config: RCNNConfig, feature_info: Sequence[FeatureInfo]) -> None:
        super().__init__()
        self.strides = [m.stride for m in feature_info]
        channels, classes = feature_info[0].channels, config.num_classes
        box_heads = [BoxHead(stage, channels, classes) for stage in config.stages]
        self.bbox_head = nn.ModuleList(box_heads) if config.indexed else box_heads[0]
        self.mask_head: nn.Module | None = None
        if config.masks:
            heads = [MaskHead(channels, config.mask_convs, config.mask_channels, classes) for _ in config.stages]
            self.mask_head = nn.ModuleList(heads) if config.indexed else heads[0]

    def classify(self, pyramid: Sequence[Tensor], regions: Tensor, stage: int) -> tuple[Tensor, Tensor]:
        """Logits ``(K, classes + 1)`` and deltas ``(K, 1 | classes, 4)`` of regions ``(K, 5)``."""
        head = self.bbox_head[stage] if isinstance(self.bbox_head, nn.ModuleList) else self.bbox_head
        outputs: tuple[Tensor, Tensor] = head(rois.pool(pyramid, self.strides, regions, BOX_GRID))
        return outputs

    def segment(self, pyramid: Sequence[Tensor], regions: Tensor, stage: int) -> Tensor:
        """Mask logits ``(K, classes, 28, 28)`` of regions ``(K, 5)``."""
        head = self.mask_head[stage] if isinstance(self.mask_head, nn.ModuleList) else self.mask_head
        assert head is not None, "this network has no masks"
        logits: Tensor = head(rois.pool(pyramid, self.strides, regions, MASK_GRID))
        return logits


class RCNN(Model[RCNNConfig, RCNNOutputs]):
    """Detector that classifies and refines region proposals and predicts their masks."""

    takes_sizes = True

    def __init__(self, config: RCNNConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = FocalNet(config.backbone)
        self.neck = config.neck.build(self.backbone.feature_info)
        self.rpn_head = RPN(config.rpn, self.neck.feature_info)
        self.roi_head = RoIHeads(config, self.neck.feature_info[: config.roi_levels])

    def forward(self, images_BCHW: Tensor, sizes: Sequence[Size]) -> RCNNOutputs:
        pyramid, rpn = self._pyramid_and_rpn(images_BCHW, sizes)
        proposals = self.rpn_head.propose(rpn, sizes, training=False)
        regions, scores, box = self._classify(pyramid, rois.boxes_to_rois([p.boxes for p in proposals]), sizes)
        return RCNNOutputs(pyramid, rpn, proposals, regions, scores, box)

    def _classify(
        self, pyramid: Sequence[Tensor], regions: Tensor, sizes: Sequence[Size] | Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Input of the last stage, scores and boxes of regions ``(K, 5)``, as in ``RCNNOutputs``."""
        logits: list[Tensor] = []
        deltas = None
        for stage in range(len(self.config.stages)):
            if deltas is not None:
                labels = logits[-1][:, :-1].argmax(1)
                regions = self.refine(regions, deltas, labels, sizes, stage - 1)
            logit, deltas = self.roi_head.classify(pyramid, regions, stage)
            logits.append(logit)
        assert deltas is not None
        return regions, torch.stack(logits).mean(0).softmax(1), self._decode(regions, deltas, sizes, stage=-1)

    def training_outputs(
        self, images_BCHW: Tensor, sizes: Sequence[Size], targets: Sequence[ObjectTarget]
    ) -> RCNNTrainingOutputs:
        pyramid, rpn = self._pyramid_and_rpn(images_BCHW, sizes)
        candidates = [p.boxes for p in self.rpn_head.propose(rpn, sizes, training=True)]
        all_labels, stages = torch.cat([target.labels for target in targets]), []
        for i, config in enumerate(self.config.stages):
            regions, matched, ground_truth = sample_rois(candidates, targets, config.sampling)
            logits, deltas = self.roi_head.classify(pyramid, regions, i)
            masks = self.roi_head.segment(pyramid, regions[matched >= 0], i) if self.config.masks else None
            stages.append(StageOutputs(regions, matched, logits, deltas, masks))
            with torch.no_grad():  # the next stage takes the boxes refined by this one
                labels = logits[:, :-1].argmax(1)
                labels[matched >= 0] = all_labels[matched[matched >= 0]]
                refined = self.refine(regions, deltas, labels, sizes, i)[~ground_truth]
            candidates = [refined[refined[:, 0] == image, 1:] for image in range(len(sizes))]
        inside = self.rpn_head.inside(rpn, sizes, self.config.size_divisor)
        return RCNNTrainingOutputs(rpn, inside, stages)

    def loss(self, batch: Batch[ObjectTarget]) -> dict[str, Tensor]:
        targets = checked_objects(batch, self.config.num_classes, masks=self.config.masks)
        return losses(self.config, self.training_outputs(batch.images, batch.sizes, targets), targets)

    def postprocess(
        self, outputs: RCNNOutputs, sizes: Sequence[Size], original_sizes: Sequence[Size]
    ) -> list[Detections]:
        detections = [self._pick(outputs, i) for i in range(len(sizes))]
        masks = self._masks(outputs.pyramid, detections) if self.config.masks else [None] * len(detections)
        results = []
        for (box, score, label), mask, size, original in zip(detections, masks, sizes, original_sizes, strict=True):
            box = boxes.resize(box, size, original)
            pasted = None if mask is None else rois.paste_masks(mask, box, original)
            results.append(Detections(box, score, label, self.class_names, pasted, original))
        return results

    def predict_tensors(self, images_BCHW: Tensor, sizes_B2: Tensor, original_sizes_B2: Tensor) -> dict[str, Tensor]:
        config, (pyramid, rpn) = self.config, self._pyramid_and_rpn(images_BCHW, sizes_B2)
        proposed, valid = self.rpn_head.propose_tensors(rpn, sizes_B2)
        _, scores, box = self._classify(pyramid, rois.batch_to_rois(proposed), sizes_B2)
        classes = config.num_classes
        score = torch.unflatten(scores[:, :classes], 0, valid.shape)  # (B, P, N)
        box = torch.unflatten(box.expand(-1, classes, -1), 0, valid.shape)
        candidate = (score > config.score_threshold) & valid[..., None]
        kept = boxes.nms_of_some(box, score, candidate, config.nms_threshold)
        label = torch.arange(classes, device=box.device).expand(score.shape)
        box, score, label, kept = (values.flatten(1, 2) for values in (box, score, label, kept))
        detections = boxes.best_objects(box, score, label, kept, config.max_per_image)
        masks = {"box_masks": self._mask_tensors(pyramid, detections)} if config.masks else {}
        resized = boxes.resize_batch(detections["boxes"], sizes_B2, original_sizes_B2)
        return {**detections, "boxes": resized, **masks}

    def _mask_tensors(self, pyramid: Sequence[Tensor], detections: dict[str, Tensor]) -> Tensor:
        """``_masks`` of all images, ``(B, K, 28, 28)``."""
        labels = detections["labels"]
        # Of a box without an area, such as those of rows after the last object, OpenVINO's features are NaN.
        low, high = detections["boxes"].chunk(2, -1)
        box = torch.cat([low, torch.maximum(high, low + _LEAST_SIDE)], -1)
        regions, of_class = rois.batch_to_rois(box), labels.clamp(min=0).flatten()
        stages = range(len(self.config.stages))
        probabilities = [own_class(self.roi_head.segment(pyramid, regions, i), of_class).sigmoid() for i in stages]
        return torch.unflatten(torch.stack(probabilities).mean(0), 0, labels.shape)

    def refine(
        self, regions: Tensor, deltas: Tensor, labels: Tensor, sizes: Sequence[Size] | Tensor, stage: int
    ) -> Tensor:
        """Replaces the boxes of regions ``(K, 5)`` by those that a stage predicts for the given classes."""
        refined = own_class(self._decode(regions, deltas, sizes, stage), labels)
        return torch.cat([regions[:, :1], refined], 1)

    def _pyramid_and_rpn(self, images: Tensor, sizes: Sequence[Size] | Tensor) -> tuple[list[Tensor], RPNOutputs]:
        check_sizes(images, sizes)
        pyramid = list(self.neck(self.backbone(images)).values())
        return pyramid[: self.config.roi_levels], self.rpn_head(pyramid)

    def _decode(self, regions: Tensor, deltas: Tensor, sizes: Sequence[Size] | Tensor, stage: int) -> Tensor:
        own_size = torch.as_tensor(sizes, device=regions.device)[regions[:, 0].long()]
        stds = self.config.stages[stage].stds
        return boxes.decode(regions[:, None, 1:].expand_as(deltas), deltas, stds, own_size[:, None])

    def _pick(self, outputs: RCNNOutputs, image: int) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, in pixels of the input, scores and labels of the objects detected in an image."""
        of_image = outputs.regions[:, 0] == image
        scores, candidates = outputs.scores[of_image, :-1], outputs.boxes[of_image]
        region, label = (scores > self.config.score_threshold).nonzero(as_tuple=True)
        return boxes.best_per_class(
            own_class(candidates[region], label),
            scores[region, label],
            label,
            iou_threshold=self.config.nms_threshold,
            limit=self.config.max_per_image,
        )

    def _masks(
        self, pyramid: Sequence[Tensor], detections: Sequence[tuple[Tensor, Tensor, Tensor]]
    ) -> Sequence[Tensor]:
        """Mask probabilities ``(n, 28, 28)`` of each image's objects, averaged over the stages."""
        regions = rois.boxes_to_rois([box for box, _, _ in detections])
        labels = torch.cat([label for _, _, label in detections])
        stages = range(len(self.config.stages))
        probabilities = [own_class(self.roi_head.segment(pyramid, regions, i), labels).sigmoid() for i in stages]
        return torch.split(torch.stack(probabilities).mean(0), [len(label) for _, _, label in detections])


def sample_rois(
    candidates: Sequence[Tensor], targets: Sequence[ObjectTarget], sampling: SamplingConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples the regions that a stage is trained on from the candidates and the ground-truth boxes.

    Args:
        candidates: boxes ``(n, 4)`` of each image.
        targets: targets of each image.
        sampling: how to assign and sample.

    Returns:
        Regions ``(K, 5)``, positives first in each image; the index of each region's object among all objects of the
        batch, or -1; and whether the region is a ground-truth box itself.
    """
    sampled, matched, ground_truth, offset = [], [], [], 0
    for box, target in zip(candidates, targets, strict=True):
        objects = target.boxes.to(box)
        assigned = assign.max_iou_assign(
            box,
            objects,
            target.ignored.to(box),
            positive=sampling.positive,
            negative=sampling.negative,
            low_quality=sampling.rescue,
            ignore=sampling.ignore,
        )
        assigned = torch.cat([torch.arange(1, len(objects) + 1, device=box.device), assigned])
        positive, negative = assign.sample(assigned, sampling.samples, sampling.positive_share)
        chosen = torch.cat([positive, negative])
        number = assigned[chosen]
        sampled.append(torch.cat([objects, box])[chosen])
        matched.append(torch.where(number > 0, number - 1 + offset, -1))
        ground_truth.append(chosen < len(objects))
        offset += len(objects)
    return rois.boxes_to_rois(sampled), torch.cat(matched), torch.cat(ground_truth)
