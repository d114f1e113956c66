"""Configuration of Faster, Mask and Cascade R-CNN; the defaults are those of the published FocalNet detectors."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from typing_extensions import Self

from focalnet.errors import ConfigError
from focalnet.kernels.fuse import fuse
from focalnet.models.base import DetectorConfig
from focalnet.nn.fpn import FPNConfig

if TYPE_CHECKING:
    from focalnet.models.rcnn.network import RCNN


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How boxes are assigned to objects and sampled for a loss.

    Args:
        positive: a box is positive if its IoU with an object is at least this.
        negative: a box is background if its IoU with every object is below this.
        rescue: low-quality matches: the boxes with an object's highest IoU are positive if it is at least this; None
            to disable.
        ignore: a box is ignored if more than this share of it lies in a crowd region; None to disable.
        samples: number of boxes sampled per image.
        positive_share: maximum share of positives among the sampled boxes.
    """

    positive: float
    negative: float
    rescue: float | None = None
    ignore: float | None = None
    samples: int
    positive_share: float


@dataclass(frozen=True, kw_only=True)
class RPNConfig:
    """The region proposal network.

    Args:
        anchor_scale: side of an anchor, in cells of its level.
        anchor_ratios: aspect ratios of the anchors, height over width.
        sampling: assignment and sampling of anchors for the losses.
        inside_only: ignore anchors that cross the image's border in training.
        smooth_l1_beta: beta of the smooth L1 box loss; 0 is L1.
        candidates: number of best-scoring anchors per level that are decoded in inference.
        candidates_in_training: the same in training.
        nms_threshold: NMS removes a box if its IoU with a better box of the same level is above this.
        proposals: number of best proposals kept per image in inference.
        proposals_in_training: the same in training.
    """

    anchor_scale: float = 8.0
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    sampling: SamplingConfig = SamplingConfig(positive=0.7, negative=0.3, rescue=0.3, samples=256, positive_share=0.5)
    inside_only: bool = False
    smooth_l1_beta: float = 0.0
    candidates: int = 1000
    candidates_in_training: int = 2000
    nms_threshold: float = 0.7
    proposals: int = 1000
    proposals_in_training: int = 1000


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of classification and box regression on proposals.

    Args:
        sampling: assignment and sampling of proposals for the losses.
        stds: standard deviations that the predicted dx, dy, dw, dh are scaled by.
        convs: number of 3x3 convolutions with batch norm before the linear layers.
        conv_channels: channels of each convolution.
        fcs: number of linear layers.
        fc_channels: channels of each linear layer.
        class_agnostic: predict one box for all classes instead of one per class.
        box_loss: ``"smooth_l1"`` of the encoded boxes, or ``"giou"`` of the decoded boxes.
        smooth_l1_beta: beta of the smooth L1 loss; 0 is L1.
        box_loss_weight: weight of the box loss.
        loss_weight: weight of all losses of the stage.
    """

    sampling: SamplingConfig = SamplingConfig(positive=0.5, negative=0.5, rescue=0.5, samples=512, positive_share=0.25)
    stds: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2)
    convs: int = 0
    conv_channels: int = 256
    fcs: int = 2
    fc_channels: int = 1024
    class_agnostic: bool = False
    box_loss: Literal["smooth_l1", "giou"] = "smooth_l1"
    smooth_l1_beta: float = 0.0
    box_loss_weight: float = 1.0
    loss_weight: float = 1.0


def released_cascade() -> tuple[StageConfig, ...]:
    """The three stages of the released Cascade Mask R-CNN: four convolutions, one linear layer, GIoU."""
    return tuple(
        StageConfig(
            sampling=SamplingConfig(positive=iou, negative=iou, samples=512, positive_share=0.25),
            stds=stds,
            convs=4,
            fcs=1,
            box_loss="giou",
            box_loss_weight=10.0,
            loss_weight=weight,
        )
        for iou, stds, weight in (
            (0.5, (0.1, 0.1, 0.2, 0.2), 1.0),
            (0.6, (0.05, 0.05, 0.1, 0.1), 0.5),
            (0.7, (0.033, 0.033, 0.067, 0.067), 0.25),
        )
    )


@dataclass(frozen=True, kw_only=True)
class RCNNConfig(DetectorConfig, ABC):
    """Base class of the configurations of Mask R-CNN (Faster R-CNN without ``masks``) and Cascade R-CNN.

    Args:
        neck: the feature pyramid; the RPN uses all levels, RoI pooling the first ``roi_levels``.
        rpn: the region proposal network.
        stages: stages of classification and box regression.
        masks: whether to predict a mask for each object.
        mask_convs: number of 3x3 convolutions in the mask head.
        mask_channels: channels of each of them.
        roi_levels: number of feature maps, finest first, that RoIs are pooled from.
        nms_threshold: NMS removes a box if its IoU with a better box of the same class is above this.
    """

    optional_parts: ClassVar[tuple[str, ...]] = ("masks",)
    indexed: ClassVar[bool]  # whether OpenMMLab's names of the heads contain the stage number

    neck: FPNConfig = FPNConfig()  # noqa: RUF009 (frozen)
    rpn: RPNConfig = RPNConfig()
    stages: tuple[StageConfig, ...] = (StageConfig(),)
    masks: bool = True
    mask_convs: int = 4
    mask_channels: int = 256
    roi_levels: int = 4
    nms_threshold: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stages:
            raise ConfigError("stages must name at least one stage")
        if not 1 <= self.roi_levels <= self.neck.levels:
            raise ConfigError(
                f"roi_levels={self.roi_levels} must be within 1..{self.neck.levels}, the levels of the pyramid"
            )

    @property
    def learns_masks(self) -> bool:
        return self.masks

    @classmethod
    def from_official(cls, model: Mapping[str, Any]) -> Self:
        from focalnet.models.rcnn.mmdet import translate  # imports the classes above

        return cls(**translate(model, cls.indexed))

    def build(self) -> RCNN:
        from focalnet.models.rcnn.network import RCNN  # built from this configuration

        return fuse(RCNN(self))


@dataclass(frozen=True, kw_only=True)
class MaskRCNNConfig(RCNNConfig):
    """Mask R-CNN (He et al., ICCV 2017, arXiv 1703.06870); with ``masks=False`` Faster R-CNN."""

    indexed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.stages) != 1:
            raise ConfigError(f"Mask R-CNN has one stage, not {len(self.stages)}: use CascadeRCNNConfig")


@dataclass(frozen=True, kw_only=True)
class CascadeRCNNConfig(RCNNConfig):
    """Cascade Mask R-CNN (Cai and Vasconcelos, TPAMI 2019, arXiv 1906.09756)."""

    indexed: ClassVar[bool] = True

    rpn: RPNConfig = RPNConfig(inside_only=True, smooth_l1_beta=1 / 9, proposals_in_training=2000)
    stages: tuple[StageConfig, ...] = field(default_factory=released_cascade)
