"""The case that maps and measures are compared with other libraries on: a small classifier, images, maps and masks."""

from __future__ import annotations

import torch
from torch import Tensor

from focalnet import Classifier
from tests.inference.small import classifier

LABELS = (2, 0)


def network(**shape: object) -> Classifier:
    """A classifier whose weights are a formula, so that they are the same with every version of PyTorch."""
    model = classifier(**shape)
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            places = torch.arange(parameter.numel(), dtype=torch.float64)
            wave = torch.sin(0.731 * (places + 1) ** 1.5 + i).view(parameter.shape)
            parameter.copy_(wave * (0.4 if parameter.ndim > 1 else 0.2) + (parameter.ndim == 1))
    return model


def images(channels: int = 3) -> Tensor:
    places = torch.arange(2 * channels * 16 * 16, dtype=torch.float64)
    return torch.sin(0.37 * places**1.3).view(2, channels, 16, 16).float()


def maps() -> Tensor:
    """Two maps without equal values, at least 0."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
    bumps = torch.stack([torch.exp(-3 * ((x - 0.3) ** 2 + (y + 0.2) ** 2)), torch.exp(-2 * (x + y + 0.5) ** 2)])
    ripples = torch.sin(torch.arange(512, dtype=torch.float64) ** 1.7).view(2, 16, 16)
    return (bumps + 0.05 * ripples).float().clamp(min=0) + 1e-3 * torch.arange(512).view(2, 16, 16) / 512


def inside() -> Tensor:
    """The masks of two objects; the first has the maximum of the first map, the second does not."""
    masks = torch.zeros(2, 16, 16, dtype=torch.bool)
    masks[0, 4:9, 8:14] = True
    masks[1, 12:, 12:] = True
    return masks
