"""UPerNet (Xiao et al., ECCV 2018, arXiv 1807.10221): semantic segmentation with pyramid pooling and a feature pyramid.

Shapes: B batch, N classes, C channels of the head, h and w height and width of the finest feature map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focalnet.errors import InputError
from focalnet.kernels import submodules
from focalnet.kernels.resized_conv import resized_conv
from focalnet.models.backbone import FocalNet
from focalnet.models.base import ScoresPixels
from focalnet.models.targets import checked_label_maps
from focalnet.models.upernet.config import UPerNetConfig
from focalnet.models.upernet.loss import losses
from focalnet.nn.conv import ConvNorm
from focalnet.nn.feature_info import FeatureInfo
from focalnet.nn.pyramid_pooling import PyramidPooling
from focalnet.ops import modes
from focalnet.ops.label_maps import label_map
from focalnet.ops.resizing import OriginalSize
from focalnet.results import SemanticMap
from focalnet.samples import Batch, LabelMapTarget, Size


@dataclass(frozen=True)
class UPerNetOutputs:
    """Outputs of the network for a batch.

    Args:
        logits: ``(B, N, h, w)``, float32.
        size: height and width of the input images.
    """

    logits: Tensor
    size: Size


@dataclass(frozen=True)
class UPerNetTrainingOutputs:
    """Logits ``(B, N, h, w)``, and those of the auxiliary head at the stride of its feature map."""

    logits: Tensor
    auxiliary: Tensor


class UPerHead(nn.Module):
    """Merges all feature maps of the backbone at the size of the finest, and classifies each cell.

    The two wide convolutions take feature maps of several sizes through ``kernels.resized_conv``. Otherwise the second
    one alone would do two thirds of the network's multiplications.
    """

    def __init__(self, config: UPerNetConfig, feature_info: Sequence[FeatureInfo]) -> None:
        super().__init__()
        *finer, coarsest = (m.channels for m in feature_info)
        channels, scales = config.channels, config.pool_scales
        self.psp_modules = PyramidPooling(coarsest, channels, scales)
        self.bottleneck = _conv(coarsest + len(scales) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(_conv(width, channels, 1) for width in finer)
        self.fpn_convs = nn.ModuleList(_conv(channels, channels, 3) for _ in finer)
        self.fpn_bottleneck = _conv(len(feature_info) * channels, channels, 3)
        self.dropout = nn.Dropout2d(config.dropout)
        self.conv_seg = nn.Conv2d(channels, config.num_classes, 1)
        _init(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """From the backbone's feature maps, finest first, to logits ``(B, N, h, w)``."""
        logits: Tensor = self.conv_seg(self.dropout(self.features(features)))
        return logits.float()

    def features(self, inputs: Sequence[Tensor]) -> Tensor:
        """Input features of the classifier, ``(B, C, h, w)``."""
        *finer, coarsest = inputs
        top = _joined(self.bottleneck, [coarsest, *self.psp_modules(coarsest)])
        sums = [*(lateral(x) for lateral, x in zip(self.lateral_convs, finer, strict=True)), top]
        for i in range(len(finer), 0, -1):
            sums[i - 1] = sums[i - 1] + _resized(sums[i], sums[i - 1].shape[2:])
        return _joined(self.fpn_bottleneck, [*(conv(x) for conv, x in zip(self.fpn_convs, sums, strict=False)), top])


class FCNHead(nn.Module):
    """The auxiliary head: a 3x3 convolution and a classifier on one feature map."""

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
    """Semantic segmentation. State dicts have mmseg's names, so released checkpoints load unchanged."""

    def __init__(self, config: UPerNetConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = FocalNet(config.backbone)
        feature_info = self.backbone.feature_info
        self.decode_head = UPerHead(config, feature_info)
        self.auxiliary_head = FCNHead(
            feature_info[config.auxiliary_index].channels,
            config.auxiliary_channels,
            config.num_classes,
            config.dropout,
        )

    def forward(self, images_BCHW: Tensor) -> UPerNetOutputs:
        logits = self.decode_head(list(self.backbone(images_BCHW).values()))
        return UPerNetOutputs(logits, (images_BCHW.shape[2], images_BCHW.shape[3]))

    def class_scores(self, images_BCHW: Tensor) -> Tensor:
        outputs: UPerNetOutputs = self(images_BCHW)
        return _resized(outputs.logits, outputs.size)

    def loss(self, batch: Batch[LabelMapTarget]) -> dict[str, Tensor]:
        labels = checked_label_maps(batch, self.config.num_classes)
        return losses(self.config, self.training_outputs(batch.images), labels)

    def training_outputs(self, images_BCHW: Tensor) -> UPerNetTrainingOutputs:
        """Logits of both heads.

        Raises:
            InputError: a batch of a single image, in training without synchronized batch norm, with a pool scale of 1.
        """
        single_image = len(images_BCHW) == 1 and 1 in self.config.pool_scales
        if single_image and any(m.training for m in self.modules() if type(m) is nn.BatchNorm2d):
            raise InputError(
                "UPerNet's batch norms cannot train on a single image, which pyramid pooling reduces to one value per "
                "channel: use a batch size of at least 2, or several processes with trainer.sync_batchnorm=true"
            )
        features = list(self.backbone(images_BCHW).values())
        return UPerNetTrainingOutputs(
            self.decode_head(features), self.auxiliary_head(features[self.config.auxiliary_index])
        )

    def predict_tensors(self, images_BCHW: Tensor, sizes_B2: Tensor, original_sizes_B2: Tensor) -> dict[str, Tensor]:
        outputs: UPerNetOutputs = self(images_BCHW)
        return {"labels": OriginalSize(sizes_B2, original_sizes_B2, outputs.size).label_maps(outputs.logits)}

    def postprocess(
        self, outputs: UPerNetOutputs, sizes: Sequence[Size], original_sizes: Sequence[Size]
    ) -> list[SemanticMap]:
        results = []
        for logits_Nhw, (height, width), original in zip(outputs.logits, sizes, original_sizes, strict=True):
            scores_NHW = _resized(logits_Nhw[None], outputs.size)[0, :, :height, :width]
            results.append(SemanticMap(label_map(scores_NHW, original), self.class_names))
        return results


def _conv(in_channels: int, channels: int, kernel: int) -> ConvNorm:
    return ConvNorm(in_channels, channels, kernel, norm="bn", relu=True)


def _joined(layer: ConvNorm, inputs: Sequence[Tensor]) -> Tensor:
    """Applies the layer to the concatenation of all feature maps, resized to the first one's size."""
    weight = submodules.wide_kernel(layer.conv)
    if weight is None or not submodules.unmodified(layer, ConvNorm) or submodules.changed_from_outside():
        out: Tensor = layer(torch.cat([_resized(x, inputs[0].shape[2:]) for x in inputs], 1))
        return out
    return layer.after_conv(resized_conv(inputs, weight))


def _resized(x_BChw: Tensor, size: Sequence[int]) -> Tensor:
    if not modes.exporting() and x_BChw.shape[2:] == tuple(size):
        return x_BChw
    return F.interpolate(x_BChw, size=tuple(size), mode="bilinear", align_corners=False)


def _init(head: nn.Module) -> None:
    """OpenMMLab's initialization: Kaiming (arXiv 1502.01852) with fan-out; classifiers normal with std 0.01."""
    for name, m in head.named_modules():
        if not isinstance(m, nn.Conv2d):
            continue
        if name == "conv_seg":
            nn.init.normal_(m.weight, std=0.01)
        else:
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
        if m.bias is not None:
            nn.init.zeros_(m.bias)
