"""Small FocalNets of timm and transformers, with weights large enough for every branch to affect the output."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.focalnet import FocalNet
from torch import nn
from transformers import (
    FocalNetBackbone,
    FocalNetConfig,
    FocalNetForImageClassification,
    FocalNetForMaskedImageModeling,
    FocalNetModel,
)

# What the published architectures differ in, beyond depth and width.
TIMM = {
    "srf": {},
    "lrf": {"focal_levels": (3, 3, 3, 3)},
    "large_fl3": {
        "focal_levels": (3, 3, 3, 3),
        "focal_windows": (5, 5, 5, 5),
        "use_post_norm": True,
        "use_overlap_down": True,
        "layerscale_value": 0.5,
    },
    "large_fl4_normalized": {
        "focal_levels": (4, 4, 4, 4),
        "use_post_norm": True,
        "use_overlap_down": True,
        "layerscale_value": 0.5,
        "normalize_modulator": True,
    },
    "huge": {
        "focal_levels": (3, 3, 3, 3),
        "use_post_norm": True,
        "use_post_norm_in_modulation": True,
        "use_overlap_down": True,
        "layerscale_value": 0.5,
    },
}
RENAMED = {
    "use_overlap_down": "use_conv_embed",
    "use_post_norm": "use_post_layernorm",
    "use_post_norm_in_modulation": "use_post_layernorm_in_modulation",
}
TRANSFORMERS = {
    "model": FocalNetModel,
    "classifier": FocalNetForImageClassification,
    "masked": FocalNetForMaskedImageModeling,
    "backbone": FocalNetBackbone,
}


def timm_model(shape: str = "srf", **options: Any) -> FocalNet:
    return lively(FocalNet(**{"embed_dim": 8, "depths": (1, 1, 2, 1), "num_classes": 5, **TIMM[shape], **options}))


def config(shape: str = "srf", **options: Any) -> FocalNetConfig:
    settings: dict[str, Any] = {"focal_levels": (2, 2, 2, 2), "focal_windows": (3, 3, 3, 3)}
    for name, value in TIMM[shape].items():
        settings[RENAMED.get(name, name)] = value
    if (scale := settings.pop("layerscale_value", None)) is not None:
        settings |= {"use_layerscale": True, "layerscale_value": scale}
    settings |= {"embed_dim": 8, "depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 32, 64], "image_size": 64}
    return FocalNetConfig(**{**settings, "num_labels": 5, "encoder_stride": 32, **options})


def transformers_model(kind: str = "classifier", shape: str = "srf", **options: Any) -> nn.Module:
    return lively(TRANSFORMERS[kind](config(shape, **options)))


def lively(model: Any) -> Any:
    """Sets weights of unit gain; with the libraries' initialization, modulation adds less than the rounding error."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + (parameter.ndim == 1) * 0.5)
    return model.eval()


def tensor(output: Any) -> torch.Tensor:
    """The tensor to compare in the output of any model."""
    for name in ("logits", "reconstruction", "pooler_output"):
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    maps = getattr(output, "feature_maps", output)
    return maps if isinstance(maps, torch.Tensor) else torch.cat([m.flatten() for m in maps])


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference relative to the largest value of ``b``."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max() / b.abs().max())
