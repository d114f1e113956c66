"""UPerNet (Xiao et al., ECCV 2018, arXiv 1807.10221): pyramid pooling above a feature pyramid, a class for each pixel.

B batch, N classes, C channels of the head, h and w a quarter of the image's height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focalnet.errors import InputError
from focalnet.kernels.resized_conv import resized_conv
from focalnet.models.backbone import FocalNet
from focalnet.models.base import ScoresPixels
from focalnet.models.upernet.config import UPerNetConfig
from focalnet.models.upernet.loss import losses
from focalnet.nn.conv import ConvNorm
from focalnet.nn.feature_info import FeatureInfo
from focalnet.nn.pyramid_pooling import PyramidPooling
from focalnet.ops.label_maps import label_map
from focalnet.results import SemanticMap
from focalnet.samples import Batch, LabelMapTarget, Size


@dataclass(frozen=True)
class UPerNetOutputs:
    """What the network says of a batch.

    Args:
        logits: ``(B, N, h, w)``, float32.
        size: height and width of the images as the network saw them.
    """

    logits: Tensor
    size: Size


@dataclass(frozen=True)
class UPerNetTrainingOutputs:
    """Logits ``(B, N, h, w)``, and those of the auxiliary head at the stride of the map it sees."""

    logits: Tensor
    auxiliary: Tensor


class UPerHead(nn.Module):
    """All maps of the backbone, joined at the size of the finest, and a class for each of its cells.

    The two wide convolutions see maps of several sizes through ``ops.resized_conv``: the products of the second alone
    would otherwise be two thirds of the whole network's.
    """

    def __init__(self, config: UPerNetConfig, maps: Sequence[FeatureInfo]) -> None:
        super().__init__()
        *finer, coarsest = (m.channels for m in maps)
        channels, scales = config.channels, config.pool_scales
        self.psp_modules = PyramidPooling(coarsest, channels, scales)
        self.bottleneck = _conv(coarsest + len(scales) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(_conv(width, channels, 1) for width in finer)
        self.fpn_convs = nn.ModuleList(_conv(channels, channels, 3) for _ in finer)
        self.fpn_bottleneck = _conv(len(maps) * channels, channels, 3)
        self.dropout = nn.Dropout2d(config.dropout)
        self.conv_seg = nn.Conv2d(channels, config.num_classes, 1)
        _init(self)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """From the backbone's maps, finest first, to logits ``(B, N, h, w)``."""
        logits: Tensor = self.conv_seg(self.dropout(self.features(maps)))
        return logits.float()

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """What the classifier sees: ``(B, C, h, w)``."""
        *finer, coarsest = maps
        top = _joined(self.bottleneck, [coarsest, *self.psp_modules(coarsest)])
        sums = [*(lateral(x) for lateral, x in zip(self.lateral_convs, finer, strict=True)), top]
        for i in range(len(finer), 0, -1):
            sums[i - 1] = sums[i - 1] + _resized(sums[i], sums[i - 1].shape[2:])
        return _joined(self.fpn_bottleneck, [*(conv(x) for conv, x in zip(self.fpn_convs, sums, strict=False)), top])


class FCNHead(nn.Module):
    """One 3x3 convolution and a class for each cell of one map: the auxiliary head."""

    def __init__(self, in_channels: int, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.convs = nn.Sequential(_conv(in_channels, channels, 3))
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)
        _init(self)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits: Tensor = self.conv_seg(self.dropout(self.convs(x_BCHW)))
        return logits.float()


class UPerNet(ScoresPixels[UPerNetConfig, UPerNetOutputs]):
    """Semantic segmentation. State dicts have mmseg's names: a released checkpoint's ``state_dict`` loads as it is."""

    def __init__(self, config: UPerNetConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = FocalNet(config.backbone)
        maps = self.backbone.feature_info
        self.decode_head = UPerHead(config, maps)
        self.auxiliary_head = FCNHead(
            maps[config.auxiliary_index].channels, config.auxiliary_channels, config.num_classes, config.dropout
        )

    def forward(self, images_BCHW: Tensor) -> UPerNetOutputs:
        logits = self.decode_head(list(self.backbone(images_BCHW).values()))
        return UPerNetOutputs(logits, (images_BCHW.shape[2], images_BCHW.shape[3]))

    def class_scores(self, images_BCHW: Tensor) -> Tensor:
        outputs: UPerNetOutputs = self(images_BCHW)
        return _resized(outputs.logits, outputs.size)

    def loss(self, batch: Batch[LabelMapTarget]) -> dict[str, Tensor]:
        size = (batch.images.shape[2], batch.images.shape[3])
        labels = [target.padded(size).labels for target in batch.targets]
        return losses(self.config, self.training_outputs(batch.images), torch.stack(labels))

    def training_outputs(self, images_BCHW: Tensor) -> UPerNetTrainingOutputs:
        """Logits of both heads.

        Raises:
            InputError: a single image, in training without synchronized norms, where a pool scale is 1.
        """
        alone = len(images_BCHW) == 1 and 1 in self.config.pool_scales
        if alone and any(m.training for m in self.modules() if type(m) is nn.BatchNorm2d):
            raise InputError(
                "UPerNet's batch norms cannot learn from a single image, which pyramid pooling makes a single value: "
                "take a batch of at least 2, or several processes and trainer.sync_batchnorm=true"
            )
        maps = list(self.backbone(images_BCHW).values())
        return UPerNetTrainingOutputs(self.decode_head(maps), self.auxiliary_head(maps[self.config.auxiliary_index]))

    def postprocess(
        self, outputs: UPerNetOutputs, sizes: Sequence[Size], original_sizes: Sequence[Size]
    ) -> list[SemanticMap]:
        found = []
        for logits_Nhw, (height, width), original in zip(outputs.logits, sizes, original_sizes, strict=True):
            scores_NHW = _resized(logits_Nhw[None], outputs.size)[0, :, :height, :width]
            found.append(SemanticMap(label_map(scores_NHW, original), self.class_names))
        return found


def _conv(in_channels: int, channels: int, kernel: int) -> ConvNorm:
    return ConvNorm(in_channels, channels, kernel, norm="bn", relu=True)


def _joined(layer: ConvNorm, maps: Sequence[Tensor]) -> Tensor:
    """The layer on all maps at the size of the first, one after the other."""
    return layer.after_conv(resized_conv(maps, layer.conv.weight))


def _resized(x_BChw: Tensor, size: Sequence[int]) -> Tensor:
    if x_BChw.shape[2:] == tuple(size):
        return x_BChw
    return F.interpolate(x_BChw, size=tuple(size), mode="bilinear", align_corners=False)


def _init(head: nn.Module) -> None:
    """OpenMMLab's start: He et al. (arXiv 1502.01852) by what goes out; classifiers normal with std 0.01."""
    for name, m in head.named_modules():
        if not isinstance(m, nn.Conv2d):
            continue
        if name == "conv_seg":
            nn.init.normal_(m.weight, std=0.01)
        else:
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
        if m.bias is not None:
            nn.init.zeros_(m.bias)
