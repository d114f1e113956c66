"""ATSS (Zhang et al., CVPR 2020, arXiv 1912.02424): one stage, one anchor a cell.

B batch, H and W of a map, N anchors of all levels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from focalnet.backbones import FeatureInfo
from focalnet.errors import ConfigError
from focalnet.models import official
from focalnet.models.anchors import AnchorGrid
from focalnet.models.base import Detector, DetectorConfig, Method, Size, check_sizes
from focalnet.necks import FPNConfig
from focalnet.nn.conv import ConvNorm
from focalnet.ops import anchors, boxes
from focalnet.structures import Detections, Target

_PRIOR = 0.01  # share of cells that hold an object, as the classifier assumes at the start


@dataclass(frozen=True, kw_only=True)
class ATSSConfig(DetectorConfig):
    """The settings of ATSS; the published FocalNet detector has maps of strides 8, 16 and 32.

    Args:
        neck: the pyramid.
        convs: 3x3 convolutions of each of the two towers.
        channels: of each, a multiple of 32.
        anchor_scale: side of the anchor in cells.
        stds: of dx, dy, dw, dh: the scale of what is predicted.
        nearest: anchors of each level that an object considers.
        ignore: an anchor of which more than this share lies in a crowd region is neither object nor background;
            None for none.
        box_loss_weight: factor of the GIoU loss.
        candidates: best pairs of anchor and class of each level that become boxes.
        nms_threshold: IoU from which the better box of the same class suppresses another.
    """

    method: ClassVar[Method] = "atss"

    neck: FPNConfig = FPNConfig(extra="conv")  # noqa: RUF009 (frozen)
    convs: int = 4
    channels: int = 256
    anchor_scale: float = 8.0
    stds: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2)
    nearest: int = 9
    ignore: float | None = None
    box_loss_weight: float = 2.0
    candidates: int = 1000
    nms_threshold: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels % 32 or self.channels < 32:
            raise ConfigError(f"channels={self.channels} must be a multiple of 32, the number of groups of the norm")

    @classmethod
    def from_official(cls, model: Mapping[str, Any]) -> Self:
        head = official.expect(official.expect(model, "model", "ATSS")["bbox_head"], "bbox_head", "ATSSHead")
        backbone, neck = official.backbone(model), official.neck(model)
        assigner = official.expect(model["train_cfg"]["assigner"], "assigner", "ATSSAssigner")
        official.unweighted(head["loss_cls"], "bbox_head.loss_cls", "FocalLoss")
        official.unweighted(head["loss_centerness"], "bbox_head.loss_centerness", "CrossEntropyLoss")
        test = model["test_cfg"]
        return cls(
            backbone=backbone,
            neck=neck,
            num_classes=head["num_classes"],
            convs=head.get("stacked_convs", 4),
            channels=head.get("feat_channels", 256),
            anchor_scale=official.anchor_scale(head["anchor_generator"], backbone, neck.levels),
            stds=official.stds(head["bbox_coder"]),
            nearest=assigner["topk"],
            ignore=official.threshold(assigner.get("ignore_iof_thr", -1)),
            box_loss_weight=official.expect(head["loss_bbox"], "bbox_head.loss_bbox", "GIoULoss")["loss_weight"],
            candidates=test["nms_pre"],
            score_threshold=test["score_thr"],
            nms_threshold=official.nms_threshold(test),
            max_per_image=test["max_per_img"],
        )

    def build(self) -> ATSS:
        return ATSS(self)


@dataclass(frozen=True)
class ATSSOutputs:
    """What the network says of every anchor, by level.

    Args:
        scores: ``(B, classes, H, W)``, logits.
        deltas: ``(B, 4, H, W)``, the object's box relative to the anchor.
        centerness: ``(B, 1, H, W)``, logits of how central the anchor is in its object.
        anchors: ``(H W, 4)``.
        inside: ``(B, N)``, which anchors count in each image.
    """

    scores: list[Tensor]
    deltas: list[Tensor]
    centerness: list[Tensor]
    anchors: list[Tensor]
    inside: Tensor


class Scale(nn.Module):
    """A learned factor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class ATSSHead(nn.Module):
    """Two towers of convolutions, shared by all levels: one for the class, one for box and centerness."""

    def __init__(self, config: ATSSConfig, maps: Sequence[FeatureInfo]) -> None:
        super().__init__()
        widths = [maps[0].channels] + [config.channels] * config.convs
        self.cls_convs, self.reg_convs = (
            nn.ModuleList(ConvNorm(a, config.channels, 3, norm="gn", relu=True) for a in widths[: config.convs])
            for _ in range(2)
        )
        self.atss_cls = nn.Conv2d(widths[-1], config.num_classes, 3, padding=1)
        self.atss_reg = nn.Conv2d(widths[-1], 4, 3, padding=1)
        self.atss_centerness = nn.Conv2d(widths[-1], 1, 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in maps)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.normal_(m.weight, std=0.01)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)
        nn.init.constant_(self.atss_cls.bias, -math.log((1 - _PRIOR) / _PRIOR))  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Logits, deltas and centerness of each map, as in ``ATSSOutputs``."""
        scores, deltas, centerness = [], [], []
        for x, scale in zip(maps, self.scales, strict=True):
            named, placed = x, x
            for conv in self.cls_convs:
                named = conv(named)
            for conv in self.reg_convs:
                placed = conv(placed)
            scores.append(self.atss_cls(named).float())
            deltas.append(scale(self.atss_reg(placed)).float())
            centerness.append(self.atss_centerness(placed).float())
        return scores, deltas, centerness


class ATSS(Detector[ATSSConfig, ATSSOutputs, ATSSOutputs]):
    """A class, a box and a centerness at every cell of a pyramid."""

    def __init__(self, config: ATSSConfig) -> None:
        super().__init__(config)
        self.backbone = config.backbone.build()
        self.neck = config.neck.build(self.backbone.feature_info)
        self.bbox_head = ATSSHead(config, self.neck.feature_info)
        self.grid = AnchorGrid(config.anchor_scale, (1.0,), tuple(m.stride for m in self.neck.feature_info))

    def forward(self, images_BCHW: Tensor, sizes: Sequence[Size]) -> ATSSOutputs:
        check_sizes(images_BCHW, sizes)
        maps = list(self.neck(self.backbone(images_BCHW)).values())
        inside = self.grid.on_image(maps, sizes, self.config.size_divisor)
        scores, deltas, centerness = self.bbox_head(maps)
        return ATSSOutputs(scores, deltas, centerness, self.grid(maps), inside)

    def training_outputs(self, images_BCHW: Tensor, sizes: Sequence[Size], targets: Sequence[Target]) -> ATSSOutputs:
        outputs: ATSSOutputs = self(images_BCHW, sizes)
        return outputs

    def postprocess(
        self, outputs: ATSSOutputs, sizes: Sequence[Size], original_sizes: Sequence[Size]
    ) -> list[Detections]:
        results = []
        for i, (size, original) in enumerate(zip(sizes, original_sizes, strict=True)):
            levels = [self._candidates(outputs, level, i) for level in range(len(outputs.anchors))]
            priors, deltas, scores, labels = (torch.cat(parts) for parts in zip(*levels, strict=True))
            found = boxes.decode(priors, deltas, self.config.stds, size)
            real = (found[:, 2:] > found[:, :2]).all(1)  # nothing is left of a box that was beside the image
            box, score, label = boxes.best_per_class(
                found[real],
                scores[real],
                labels[real],
                iou_threshold=self.config.nms_threshold,
                limit=self.config.max_per_image,
            )
            box = boxes.resize(box, size, original)
            results.append(Detections(box, score, label, self.class_names, size=original))
        return results

    def _candidates(self, outputs: ATSSOutputs, level: int, image: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Anchors, deltas, scores and labels of a level's best pairs of anchor and class."""
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
