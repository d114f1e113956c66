"""The heads applied to each region: classes and boxes, and masks."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from focalnet.models.rcnn.config import StageConfig
from focalnet.nn.conv import ConvNorm

BOX_GRID, MASK_GRID = 7, 14  # side of the grid of a pooled region


class BoxHead(nn.Module):
    """Predicts classes and boxes of regions: convolutions, linear layers, two outputs."""

    def __init__(self, config: StageConfig, in_channels: int, num_classes: int) -> None:
        super().__init__()
        channels = [in_channels] + [config.conv_channels] * config.convs
        widths = [channels[-1] * BOX_GRID**2] + [config.fc_channels] * config.fcs
        self.shared_convs = nn.ModuleList(ConvNorm(a, b, 3, norm="bn", relu=True) for a, b in pairwise(channels))
        self.shared_fcs = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.fc_cls = nn.Linear(widths[-1], num_classes + 1)
        self.fc_reg = nn.Linear(widths[-1], 4 if config.class_agnostic else 4 * num_classes)
        for linear in self.shared_fcs:
            nn.init.xavier_uniform_(linear.weight)  # type: ignore[arg-type]
            nn.init.zeros_(linear.bias)  # type: ignore[arg-type]
        for output, std in ((self.fc_cls, 0.01), (self.fc_reg, 0.001)):
            nn.init.normal_(output.weight, std=std)
            nn.init.zeros_(output.bias)
        _init_convs(self)

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """From ``(K, C, 7, 7)`` to logits ``(K, classes + 1)``, background last, and deltas ``(K, 1 | classes, 4)``."""
        x = regions
        for conv in self.shared_convs:
            x = conv(x)
        x = x.flatten(1)
        for linear in self.shared_fcs:
            x = linear(x).relu()
        return self.fc_cls(x).float(), self.fc_reg(x).float().unflatten(1, (self.fc_reg.out_features // 4, 4))


class MaskHead(nn.Module):
    """Predicts a mask per class for regions: convolutions, then upsampling by two."""

    def __init__(self, in_channels: int, convs: int, channels: int, num_classes: int) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * convs
        self.convs = nn.ModuleList(ConvNorm(a, b, 3, relu=True) for a, b in pairwise(widths))
        self.upsample = nn.ConvTranspose2d(widths[-1], channels, 2, stride=2)
        self.conv_logits = nn.Conv2d(channels, num_classes, 1)
        _init_convs(self)

    def forward(self, regions: Tensor) -> Tensor:
        """From ``(K, C, 14, 14)`` to logits ``(K, classes, 28, 28)``."""
        x = regions
        for conv in self.convs:
            x = conv(x)
        logits: Tensor = self.conv_logits(self.upsample(x).relu())
        return logits.float()


def own_class(values: Tensor, labels: Tensor) -> Tensor:
    """Selects the entry of each row's class from ``(K, classes, ...)``, or the only one from ``(K, 1, ...)``."""
    index = labels if values.shape[1] > 1 else torch.zeros_like(labels)
    return values[torch.arange(values.shape[0], device=values.device), index]


def _init_convs(module: nn.Module) -> None:
    for m in module.modules():
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
            if m.bias is not None:
                nn.init.zeros_(m.bias)
