"""ATSS (Zhang et al., CVPR 2020, arXiv 1912.02424): one stage, one anchor per cell.

Shapes: B batch, H and W height and width of a feature map, N anchors of all levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from focalnet.models.anchors import AnchorGrid
from focalnet.models.atss.config import ATSSConfig
from focalnet.models.atss.loss import losses
from focalnet.models.backbone import FocalNet
from focalnet.models.base import Model, check_sizes
from focalnet.models.targets import checked_objects
from focalnet.nn.conv import ConvNorm
from focalnet.nn.feature_info import FeatureInfo
from focalnet.ops import anchors, boxes
from focalnet.results import Detections
from focalnet.samples import Batch, ObjectTarget, Size

_PRIOR = 0.01  # initial probability of an object, which sets the classifier's bias


@dataclass(frozen=True)
class ATSSOutputs:
    """Outputs for every anchor, one tensor per level.

    Args:
        scores: ``(B, classes, H, W)``, logits.
        deltas: ``(B, 4, H, W)``, the object's box relative to the anchor.
        centerness: ``(B, 1, H, W)``, logits of the anchor's centerness in its object.
        anchors: ``(H W, 4)``.
        inside: ``(B, N)``, bool, which anchors lie on each image.
    """

    scores: list[Tensor]
    deltas: list[Tensor]
    centerness: list[Tensor]
    anchors: list[Tensor]
    inside: Tensor


class Scale(nn.Module):
    """A learned scalar factor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class ATSSHead(nn.Module):
    """Two towers of convolutions, shared by all levels: one for classes, one for boxes and centerness."""

    def __init__(self, config: ATSSConfig, feature_info: Sequence[FeatureInfo]) -> None:
        super().__init__()
        widths = [feature_info[0].channels] + [config.channels] * config.convs
        self.cls_convs, self.reg_convs = (
            nn.ModuleList(ConvNorm(a, config.channels, 3, norm="gn", relu=True) for a in widths[: config.convs])
            for _ in range(2)
        )
        self.atss_cls = nn.Conv2d(widths[-1], config.num_classes, 3, padding=1)
        self.atss_reg = nn.Conv2d(widths[-1], 4, 3, padding=1)
        self.atss_centerness = nn.Conv2d(widths[-1], 1, 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in feature_info)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.normal_(m.weight, std=0.01)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)
        nn.init.constant_(self.atss_cls.bias, -math.log((1 - _PRIOR) / _PRIOR))  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Logits, deltas and centerness of each feature map, as in ``ATSSOutputs``."""
        scores, deltas, centerness = [], [], []
        for x, scale in zip(features, self.scales, strict=True):
            cls_features, reg_features = x, x
            for conv in self.cls_convs:
                cls_features = conv(cls_features)
            for conv in self.reg_convs:
                reg_features = conv(reg_features)
            scores.append(self.atss_cls(cls_features).float())
            deltas.append(scale(self.atss_reg(reg_features)).float())
            centerness.append(self.atss_centerness(reg_features).float())
        return scores, deltas, centerness


class ATSS(Model[ATSSConfig, ATSSOutputs]):
    """Predicts classes, a box and its centerness at every cell of a feature pyramid."""

    takes_sizes = True

    def __init__(self, config: ATSSConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = FocalNet(config.backbone)
        self.neck = config.neck.build(self.backbone.feature_info)
        self.bbox_head = ATSSHead(config, self.neck.feature_info)
        self.grid = AnchorGrid(config.anchor_scale, (1.0,), tuple(m.stride for m in self.neck.feature_info))

    def forward(self, images_BCHW: Tensor, sizes: Sequence[Size]) -> ATSSOutputs:
        check_sizes(images_BCHW, sizes)
        features = list(self.neck(self.backbone(images_BCHW)).values())
        inside = self.grid.on_image(features, sizes, self.config.size_divisor)
        scores, deltas, centerness = self.bbox_head(features)
        return ATSSOutputs(scores, deltas, centerness, self.grid(features), inside)

    def loss(self, batch: Batch[ObjectTarget]) -> dict[str, Tensor]:
        targets = checked_objects(batch, self.config.num_classes)
        return losses(self.config, self(batch.images, batch.sizes), targets)

    def postprocess(
        self, outputs: ATSSOutputs, sizes: Sequence[Size], original_sizes: Sequence[Size]
    ) -> list[Detections]:
        results = []
        for i, (size, original) in enumerate(zip(sizes, original_sizes, strict=True)):
            levels = [self._candidates(outputs, level, i) for level in range(len(outputs.anchors))]
            priors, deltas, scores, labels = (torch.cat(parts) for parts in zip(*levels, strict=True))
            decoded = boxes.decode(priors, deltas, self.config.stds, size)
            valid = (decoded[:, 2:] > decoded[:, :2]).all(1)  # boxes outside the image are empty after clipping
            box, score, label = boxes.best_per_class(
                decoded[valid],
                scores[valid],
                labels[valid],
                iou_threshold=self.config.nms_threshold,
                limit=self.config.max_per_image,
            )
            box = boxes.resize(box, size, original)
            results.append(Detections(box, score, label, self.class_names, size=original))
        return results

    def predict_tensors(self, images_BCHW: Tensor, sizes_B2: Tensor, original_sizes_B2: Tensor) -> dict[str, Tensor]:
        features = list(self.neck(self.backbone(images_BCHW)).values())
        levels = zip(*self.bbox_head(features), self.grid(features), strict=True)
        picked = [self._candidate_tensors(*level) for level in levels]
        priors, deltas, scores, labels, valid = (torch.cat(parts, 1) for parts in zip(*picked, strict=True))
        decoded = boxes.decode(priors, deltas, self.config.stds, sizes_B2[:, None])
        valid = valid & (decoded[..., 2:] > decoded[..., :2]).all(-1)
        kept = boxes.nms_mask(
            decoded, scores, labels, valid, iou_threshold=self.config.nms_threshold, groups=self.config.num_classes
        )
        decoded = boxes.resize_batch(decoded, sizes_B2, original_sizes_B2)
        return boxes.best_objects(decoded, scores, labels, kept, self.config.max_per_image)

    def _candidate_tensors(
        self, scores: Tensor, deltas: Tensor, centerness: Tensor, anchor: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """``_candidates`` of all images in a level, and which of them are above the threshold."""
        classes = scores.shape[1]
        probability = anchors.flatten(scores, classes).sigmoid().flatten(1)
        count = torch.sym_min(self.config.candidates, probability.shape[1])
        above = torch.where(probability > self.config.score_threshold, probability, -1.0)
        probability, index = above.topk(count)
        cell = index // classes
        near = anchors.flatten(centerness, 1)[..., 0].gather(1, cell).sigmoid()
        delta = anchors.flatten(deltas, 4).gather(1, cell[..., None].expand(-1, -1, 4))
        return anchor[cell], delta, probability * near, index % classes, probability >= 0

    def _candidates(self, outputs: ATSSOutputs, level: int, image: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Anchors, deltas, scores and labels of the best-scoring pairs of anchor and class in a level."""
        scores, deltas, centerness = (
            anchors.flatten(values[level][image : image + 1], values[level].shape[1])[0]
            for values in (outputs.scores, outputs.deltas, outputs.centerness)
        )
        probability = scores.sigmoid()
        anchor, label = (probability > self.config.score_threshold).nonzero(as_tuple=True)
        best = probability[anchor, label].topk(min(self.config.candidates, len(anchor))).indices
        anchor, label = anchor[best], label[best]
        score = probability[anchor, label] * centerness[anchor, 0].sigmoid()
        return outputs.anchors[level][anchor], deltas[anchor], score, label
