"""Configuration of ATSS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from focalnet.errors import ConfigError
from focalnet.kernels.fuse import fuse
from focalnet.models import openmmlab
from focalnet.models.base import DetectorConfig
from focalnet.nn.fpn import FPNConfig

if TYPE_CHECKING:
    from focalnet.models.atss.network import ATSS


@dataclass(frozen=True, kw_only=True)
class ATSSConfig(DetectorConfig):
    """Configuration of ATSS; the published FocalNet detector uses feature maps of strides 8, 16 and 32.

    Args:
        neck: the feature pyramid.
        convs: number of 3x3 convolutions in each of the two towers.
        channels: channels of each convolution, a multiple of 32; unused if ``convs`` is 0.
        anchor_scale: side of the anchor, in cells of its level.
        stds: standard deviations that the predicted dx, dy, dw, dh are scaled by.
        nearest: number of anchors per level, nearest to an object, that are candidates for it.
        ignore: an anchor is ignored in training if more than this share of it lies in a crowd region; None to
            disable.
        box_loss_weight: weight of the GIoU loss.
        candidates: number of best-scoring pairs of anchor and class per level that are decoded.
        nms_threshold: NMS removes a box if its IoU with a better box of the same class is above this.
    """

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
        if self.convs and (self.channels % 32 or self.channels < 32):
            raise ConfigError(f"channels={self.channels} must be a multiple of 32, the number of groups of the norm")

    @classmethod
    def from_official(cls, model: Mapping[str, Any]) -> Self:
        model = openmmlab.whole(model, "ATSS")
        head = openmmlab.expect(model["bbox_head"], "bbox_head", "ATSSHead")
        backbone, neck = openmmlab.backbone(model), openmmlab.neck(model)
        assigner = openmmlab.expect(model["train_cfg"]["assigner"], "assigner", "ATSSAssigner")
        openmmlab.unweighted(head["loss_cls"], "bbox_head.loss_cls", "FocalLoss")
        openmmlab.unweighted(head["loss_centerness"], "bbox_head.loss_centerness", "CrossEntropyLoss")
        groups = (head.get("norm_cfg") or {}).get("num_groups", 32)
        if groups != 32:
            raise ConfigError(f"bbox_head: norm_cfg num_groups={groups} is not supported, only 32")
        if list(head["anchor_generator"].get("ratios", [1.0])) != [1.0]:
            raise ConfigError(
                f"anchor_generator: ratios {head['anchor_generator']['ratios']} must be one square anchor"
            )
        test = model["test_cfg"]
        return cls(
            backbone=backbone,
            neck=neck,
            num_classes=head["num_classes"],
            convs=head.get("stacked_convs", 4),
            channels=head.get("feat_channels", 256),
            anchor_scale=openmmlab.anchor_scale(head["anchor_generator"], backbone, neck.levels),
            stds=openmmlab.stds(head["bbox_coder"]),
            nearest=assigner["topk"],
            ignore=openmmlab.threshold(assigner.get("ignore_iof_thr", -1)),
            box_loss_weight=openmmlab.expect(head["loss_bbox"], "bbox_head.loss_bbox", "GIoULoss")["loss_weight"],
            candidates=test["nms_pre"],
            score_threshold=test["score_thr"],
            nms_threshold=openmmlab.nms_threshold(test),
            max_per_image=test["max_per_img"],
        )

    def build(self) -> ATSS:
        from focalnet.models.atss.network import ATSS  # built from this configuration

        return fuse(ATSS(self))
