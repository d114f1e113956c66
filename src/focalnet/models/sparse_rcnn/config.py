"""Configuration of Sparse R-CNN."""

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
    from focalnet.models.sparse_rcnn.network import SparseRCNN


@dataclass(frozen=True, kw_only=True)
class SparseRCNNConfig(DetectorConfig):
    """Configuration of Sparse R-CNN.

    The losses of each stage are focal (weight 2), L1 in units of the image's size (5) and GIoU (2), as in the paper.
    With ``score_threshold`` 0, the best ``max_per_image`` pairs of proposal and class are reported.

    Args:
        neck: the feature pyramid; regions are pooled from all its levels.
        proposals: number of learned proposals.
        stages: number of refinement stages.
        heads: attention heads of the self-attention between proposals.
        feedforward_channels: hidden width of each stage's MLP.
        dynamic_channels: hidden channels of the dynamic convolution.
        class_layers: linear layers before the classifier.
        box_layers: linear layers before the box regression.
        dropout: dropout rate in attention and MLP.
        stds: standard deviations that the predicted dx, dy, dw, dh are scaled by.
    """

    neck: FPNConfig = FPNConfig(levels=4)  # noqa: RUF009 (frozen)
    score_threshold: float = 0.0
    max_per_image: int = 300
    proposals: int = 300
    stages: int = 6
    heads: int = 8
    feedforward_channels: int = 2048
    dynamic_channels: int = 64
    class_layers: int = 1
    box_layers: int = 3
    dropout: float = 0.0
    stds: tuple[float, ...] = (0.5, 0.5, 1.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("proposals", "stages"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.neck.channels % self.heads:
            raise ConfigError(f"heads={self.heads} must divide the pyramid's {self.neck.channels} channels")

    @classmethod
    def from_official(cls, model: Mapping[str, Any]) -> Self:
        from focalnet.models.sparse_rcnn.network import GRID, SAMPLES  # built from this configuration

        model = openmmlab.whole(model, "SparseRCNN")
        backbone, neck = openmmlab.backbone(model), openmmlab.neck(model)
        rpn = openmmlab.expect(model["rpn_head"], "rpn_head", "EmbeddingRPNHead")
        roi = openmmlab.expect(model["roi_head"], "roi_head", "SparseRoIHead")
        heads = [openmmlab.expect(head, "bbox_head", "DIIHead") for head in roi["bbox_head"]]
        head = openmmlab.same(heads, "bbox_head")
        openmmlab.same([1, *roi["stage_loss_weights"]], "stage_loss_weights")
        losses = {name: head[f"loss_{name}"]["loss_weight"] for name in ("cls", "bbox", "iou")}
        if losses != {"cls": 2.0, "bbox": 5.0, "iou": 2.0}:
            raise ConfigError(f"bbox_head: loss weights {losses} are not supported, only those of the paper: 2, 5, 2")
        levels = openmmlab.roi_extractor(roi, "bbox_roi_extractor", backbone, size=GRID, samples=SAMPLES)
        if levels != neck.levels:
            raise ConfigError(f"roi_head: bbox_roi_extractor must pool from all {neck.levels} levels, not {levels}")
        return cls(
            backbone=backbone,
            neck=neck,
            num_classes=head["num_classes"],
            proposals=rpn["num_proposals"],
            stages=roi["num_stages"],
            heads=head["num_heads"],
            feedforward_channels=head["feedforward_channels"],
            dynamic_channels=head["dynamic_conv_cfg"]["feat_channels"],
            class_layers=head["num_cls_fcs"],
            box_layers=head["num_reg_fcs"],
            dropout=head["dropout"],
            stds=openmmlab.stds(head["bbox_coder"]),
            max_per_image=model["test_cfg"]["rcnn"]["max_per_img"],
        )

    def build(self) -> SparseRCNN:
        from focalnet.models.sparse_rcnn.network import SparseRCNN  # built from this configuration

        return fuse(SparseRCNN(self))
