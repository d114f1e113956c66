"""Configuration of Mask2Former, also from mmdet's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from typing_extensions import Self

from focalnet.errors import ConfigError
from focalnet.kernels.fuse import fuse
from focalnet.models import openmmlab
from focalnet.models.base import DenseConfig, Output, TaskName

if TYPE_CHECKING:
    from focalnet.models.mask2former.network import Mask2Former

Segmentation = Literal["semantic", "instance", "panoptic"]


@dataclass(frozen=True, kw_only=True)
class Mask2FormerConfig(DenseConfig):
    """Configuration of Mask2Former. Loss weights are the paper's: class 2, mask 5, dice 5, "no object" 0.1.

    Args:
        backbone: configuration of the backbone, with at least two feature maps.
        num_classes: number of classes: things first, then stuff.
        size_divisor: batched images are padded to a multiple of this.
        segments: type of the results: ``SemanticMap``, ``Detections`` with masks, or ``PanopticMap``.
        num_things: number of thing classes; None for all.
        num_queries: number of queries, the maximum number of segments per image.
        channels: channels of queries, pixel decoder and mask features; a multiple of 4, of ``heads`` and of
            ``norm_groups``.
        heads: attention heads, in all attention layers.
        norm_groups: groups of the group norms.
        levels: maximum number of feature maps, coarsest first, that the attention layers use; the finest is never used.
        points: sampling points of deformable attention, per head and level.
        placed: add position encodings to the values of the pixel decoder, not only to its queries. Not in the paper;
            with few training images, masks learn far sooner to separate objects of the same look.
        encoder_layers: encoder layers of the pixel decoder.
        encoder_hidden: hidden width of their MLPs.
        decoder_layers: transformer decoder layers; predictions are made before the first and after each.
        decoder_hidden: hidden width of their MLPs.
        object_threshold: panoptic: queries need a class probability above this to become a segment.
        overlap_threshold: panoptic: a segment is dropped if less than this share of its mask is left after others
            have taken their pixels.
        max_per_image: instance: maximum number of objects reported.
        train_points: number of points at which masks are compared in matching and loss.
        oversample: number of candidate points sampled per point of the loss.
        importance: share of the loss points chosen as the most uncertain candidates; the others are uniformly random.
    """

    segments: Segmentation = "panoptic"
    num_things: int | None = None
    num_queries: int = 100
    channels: int = 256
    heads: int = 8
    norm_groups: int = 32
    levels: int = 3
    points: int = 4
    placed: bool = False
    encoder_layers: int = 6
    encoder_hidden: int = 1024
    decoder_layers: int = 9
    decoder_hidden: int = 2048
    object_threshold: float = 0.8
    overlap_threshold: float = 0.8
    max_per_image: int = 100
    train_points: int = 12544
    oversample: float = 3.0
    importance: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = ("num_queries", "heads", "norm_groups", "levels", "points", "encoder_layers", "decoder_layers")
        for name in (*counts, "max_per_image"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("object_threshold", "overlap_threshold", "importance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be in [0, 1]")
        if self.train_points < 1 or self.oversample < 1:
            raise ConfigError(f"train_points={self.train_points} and oversample={self.oversample} must be at least 1")
        if self.segments not in get_args(Segmentation):
            raise ConfigError(f'segments="{self.segments}" must be one of {", ".join(get_args(Segmentation))}')
        if self.num_things is not None and not 0 <= self.num_things <= self.num_classes:
            raise ConfigError(
                f"num_things={self.num_things} must be within 0..{self.num_classes}, the number of classes"
            )
        if self.num_things == self.num_classes:  # equal networks compare equal
            object.__setattr__(self, "num_things", None)
        if self.channels < 1 or any(self.channels % divisor for divisor in (4, self.heads, self.norm_groups)):
            raise ConfigError(
                f"channels={self.channels} must be a multiple of 4, for the position encodings, of "
                f"heads={self.heads} and of norm_groups={self.norm_groups}"
            )
        maps = self.backbone.out_indices or self.backbone.depths
        if len(maps) < 2:
            raise ConfigError("Mask2Former needs a backbone with at least two feature maps")

    @property
    def output(self) -> Output:
        return self.segments

    @property
    def learns_masks(self) -> bool:
        return True

    @property
    def things(self) -> int:
        return self.num_classes if self.num_things is None else self.num_things

    def for_task(self, task: TaskName, num_things: int | None = None) -> Self:
        segments: dict[str, Segmentation] = {"detection": "instance", "semantic": "semantic", "panoptic": "panoptic"}
        return replace(self, segments=segments[task], num_things=self.num_things if num_things is None else num_things)

    def with_classes(self, num_classes: int) -> Self:
        kept = self.num_things if self.num_things is None or self.num_things <= num_classes else None
        return replace(self, num_classes=num_classes, num_things=kept)

    def attended(self, maps: int) -> int:
        """How many of the backbone's ``maps`` feature maps the attention layers use."""
        return min(self.levels, maps - 1)

    @classmethod
    def from_official(cls, model: Mapping[str, Any]) -> Self:
        model = openmmlab.whole(model, "Mask2Former")
        head = openmmlab.expect(model["panoptic_head"], "panoptic_head", "Mask2FormerHead")
        pixels = openmmlab.expect(head["pixel_decoder"], "pixel_decoder", "MSDeformAttnPixelDecoder")
        encoder, decoder = pixels["encoder"], head["transformer_decoder"]
        attention = encoder["layer_cfg"]["self_attn_cfg"]
        train, test = model["train_cfg"], model["test_cfg"]
        _expect_loss(head, train)
        things = head["num_things_classes"]
        classes = things + head["num_stuff_classes"]
        if head["enforce_decoder_input_project"] or head["feat_channels"] != head["out_channels"]:
            raise ConfigError("panoptic_head: projections between feat_channels and out_channels are not supported")
        if test["panoptic_on"] and not test.get("filter_low_score", False):
            raise ConfigError("test_cfg: panoptic segmentation without filter_low_score is not supported")
        return cls(
            backbone=openmmlab.backbone(model),
            num_classes=classes,
            segments="panoptic" if test["panoptic_on"] else "instance" if test["instance_on"] else "semantic",
            num_things=things,
            num_queries=head["num_queries"],
            channels=head["feat_channels"],
            heads=openmmlab.same(
                [attention["num_heads"], decoder["layer_cfg"]["cross_attn_cfg"]["num_heads"]], "heads"
            ),
            norm_groups=pixels["norm_cfg"]["num_groups"],
            levels=head["num_transformer_feat_level"],
            points=attention["num_points"],
            encoder_layers=encoder["num_layers"],
            encoder_hidden=encoder["layer_cfg"]["ffn_cfg"]["feedforward_channels"],
            decoder_layers=decoder["num_layers"],
            decoder_hidden=decoder["layer_cfg"]["ffn_cfg"]["feedforward_channels"],
            object_threshold=test.get("object_mask_thr", 0.8),
            overlap_threshold=test["iou_thr"],
            max_per_image=test["max_per_image"],
            train_points=train["num_points"],
            oversample=train["oversample_ratio"],
            importance=train["importance_sample_ratio"],
        )

    def build(self) -> Mask2Former:
        from focalnet.models.mask2former.network import Mask2Former  # built from this configuration

        return fuse(Mask2Former(self))


def _expect_loss(head: Mapping[str, Any], train: Mapping[str, Any]) -> None:
    """Checks that the loss weights are the paper's, the only ones supported."""
    weights = [head[f"loss_{name}"]["loss_weight"] for name in ("cls", "mask", "dice")]
    costs = [cost["weight"] for cost in train["assigner"]["match_costs"]]
    if weights != costs or weights != [2.0, 5.0, 5.0]:
        raise ConfigError(
            f"loss weights {weights} and costs {costs} are not supported, only those of the paper: 2, 5, 5"
        )
    *classes, no_object = head["loss_cls"]["class_weight"]
    if no_object != 0.1 or any(weight != 1.0 for weight in classes):
        raise ConfigError("loss_cls: class_weight must be 1 for each class and 0.1 for no object, as in the paper")
