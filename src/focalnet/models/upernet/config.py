"""Configuration of UPerNet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from focalnet.errors import ConfigError
from focalnet.kernels.fuse import fuse
from focalnet.models import openmmlab
from focalnet.models.base import DenseConfig, Output

if TYPE_CHECKING:
    from focalnet.models.upernet.network import UPerNet


@dataclass(frozen=True, kw_only=True)
class UPerNetConfig(DenseConfig):
    """Configuration of UPerNet; the defaults are those published for ADE20K.

    Args:
        size_divisor: 1, since the published networks take images without padding.
        channels: channels of all feature maps in the head.
        pool_scales: sides of the grids that pyramid pooling averages the coarsest feature map to; may be empty.
        auxiliary_channels: channels of the auxiliary head, which is used in training only.
        auxiliary_index: index of the backbone's feature map that the auxiliary head takes; -2 is the second coarsest.
        auxiliary_weight: weight of the auxiliary head's loss.
        dropout: dropout rate of whole channels before each classifier.
    """

    num_classes: int = 150
    size_divisor: int = 1
    channels: int = 512
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)
    auxiliary_channels: int = 256
    auxiliary_index: int = -2
    auxiliary_weight: float = 0.4
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        maps = len(self.backbone.out_indices or self.backbone.depths)
        for name, least in (("channels", 1), ("auxiliary_channels", 1), ("auxiliary_weight", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least {least}")
        if any(scale < 1 for scale in self.pool_scales):
            raise ConfigError(f"pool_scales={self.pool_scales} must all be at least 1")
        if not 0 <= self.dropout <= 1:
            raise ConfigError(f"dropout={self.dropout} must be in [0, 1]")
        if not -maps <= self.auxiliary_index < maps:
            raise ConfigError(f"auxiliary_index={self.auxiliary_index} must be within {-maps}..{maps - 1}")

    @property
    def output(self) -> Output:
        return "semantic"

    @classmethod
    def from_official(cls, model: Mapping[str, Any]) -> Self:
        model = openmmlab.whole(model, "EncoderDecoder")
        head = openmmlab.expect(model["decode_head"], "decode_head", "UPerHead")
        auxiliary = openmmlab.expect(model["auxiliary_head"], "auxiliary_head", "FCNHead")
        openmmlab.semantic(head, "decode_head")
        openmmlab.semantic(auxiliary, "auxiliary_head", concat_input=False, num_convs=1, kernel_size=3)
        if head["loss_decode"].get("loss_weight", 1.0) != 1.0:
            raise ConfigError(f"decode_head: loss_weight={head['loss_decode']['loss_weight']} must be 1")
        backbone = openmmlab.backbone(model)
        maps = len(backbone.out_indices or backbone.depths)
        if list(head["in_index"]) != list(range(maps)):
            raise ConfigError(
                f"decode_head: in_index {head['in_index']} must list all {maps} feature maps of the backbone"
            )
        shared = {
            name: openmmlab.same([head[name], auxiliary[name]], name) for name in ("num_classes", "dropout_ratio")
        }
        return cls(
            backbone=backbone,
            num_classes=shared["num_classes"],
            channels=head["channels"],
            pool_scales=tuple(head["pool_scales"]),
            auxiliary_channels=auxiliary["channels"],
            auxiliary_index=auxiliary["in_index"] - maps,
            auxiliary_weight=auxiliary["loss_decode"]["loss_weight"],
            dropout=shared["dropout_ratio"],
        )

    def build(self) -> UPerNet:
        from focalnet.models.upernet.network import UPerNet  # built from this configuration

        return fuse(UPerNet(self))
