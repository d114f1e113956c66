"""Small networks of every family, with weights that give different results for different images."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from focalnet import registry
from focalnet.card import ModelCard, Preprocessing
from focalnet.models import Model
from tests.models import small

_FLAT = Preprocessing(image_size=96, max_size=160, crop_pct=1.0, interpolation="bilinear")
_NARROW = {"num_classes": 3, "focal_levels": (1, 1, 1, 1)}


def network(method: str, **options: Any) -> Model[Any, Any]:
    """A narrow network of a method of ``tests.models.small``, or ``"classifier"``, with a card.

    The random weights of heads are so large that scores of different objects differ by more than rounding.
    """
    torch.manual_seed(0)
    name = "focalnet_tiny_srf" if method == "classifier" else f"{method}_focalnet_tiny_srf"
    model = registry.configure(name, **{**small.options_of(method), **_NARROW, **options}).build().eval()
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module.weight.std() < 0.05:
            nn.init.normal_(module.weight, std=0.2)
    preprocessing = Preprocessing(image_size=64) if method == "classifier" else _FLAT
    names = tuple(f"class {i}" for i in range(model.config.num_classes))
    model.card = ModelCard(name=f"{method}.test", class_names=names, preprocessing=preprocessing, licence="MIT")
    return model


#: Each family, and Mask2Former for each type of result.
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("classifier", {}),
    ("upernet", {}),
    ("atss", {}),
    ("dino", {"score_threshold": 0.0}),
    ("sparse_rcnn", {"score_threshold": 0.0}),
    ("mask2former", {"segments": "semantic"}),
    ("mask2former", {"segments": "instance", "num_things": 2}),
    ("mask2former", {"segments": "panoptic", "num_things": 2, "object_threshold": 0.0}),
    ("mask_rcnn", {}),
    ("cascade_mask_rcnn", {}),
]
