"""A small classifier, and images whose pixel values encode their position."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from focalnet import Classifier, ClassifierConfig, FocalNet, FocalNetConfig
from focalnet.card import ModelCard, Preprocessing

SHAPE = {"embed_dim": 8, "depths": (1, 2), "focal_levels": (2, 1), "focal_windows": (3, 3), "patch_size": 2}
CARD = ModelCard(
    name="focalnet_small.test",
    class_names=("ant", "bee", "cat"),
    preprocessing=Preprocessing(image_size=16, crop_pct=0.8),
)


def classifier(multi_label: bool = False, **shape: object) -> Classifier:
    torch.manual_seed(0)
    config = ClassifierConfig(backbone=FocalNetConfig(**{**SHAPE, **shape}), num_classes=3, multi_label=multi_label)
    model = config.build().eval()
    model.card = CARD
    return model


def backbone() -> FocalNet:
    torch.manual_seed(0)
    model = FocalNetConfig(**SHAPE).build().eval()
    model.card = CARD
    return model


def ramp(width: int, height: int) -> Image.Image:
    """Red grows from left to right and green from top to bottom, both from 0 to 255 over the image."""
    pixels = np.zeros((height, width, 3), np.float64)
    pixels[..., 0] = (np.arange(width) + 0.5) / width * 255
    pixels[..., 1] = ((np.arange(height) + 0.5) / height * 255)[:, None]
    return Image.fromarray(pixels.round().astype(np.uint8))


def noise(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))
