"""Small networks that differ in everything on which the layout of a checkpoint depends."""

from __future__ import annotations

import torch

from focalnet.models import Classifier, ClassifierConfig
from focalnet.models.backbone import FocalNetConfig

PLAIN = {"embed_dim": 8, "depths": (1, 2), "focal_levels": (2, 2), "focal_windows": (3, 3)}
LARGE = {**PLAIN, "overlapped": True, "post_norm": True, "layer_scale": 1e-4}

CONFIGS = {
    "plain": PLAIN,
    "levels": {**PLAIN, "focal_levels": (3, 1), "focal_windows": (5, 7)},
    "global_only": {**PLAIN, "focal_levels": (0, 2)},
    "overlapped": {**PLAIN, "overlapped": True},
    "layer_scale": {**PLAIN, "layer_scale": 1e-4},
    "post_norm": {**PLAIN, "post_norm": True},
    "large_like": LARGE,
    "huge_like": {**LARGE, "post_norm_in_modulation": True},
    "normalize_modulator": {**LARGE, "normalize_modulator": True},
    "grey_narrow_mlp": {**PLAIN, "in_chans": 1, "mlp_ratio": 1.5},
    "four_stages": {**PLAIN, "depths": (1, 1, 1, 1), "focal_levels": (2,) * 4, "focal_windows": (3,) * 4},
}
ONLY_OURS = {
    "no_patch_norm": {**PLAIN, "patch_norm": False},
    "isotropic": {"embed_dim": 16, "depths": (2,), "focal_levels": (3,), "focal_windows": (3,), "patch_size": 16},
    "nano": {**PLAIN, "patch_size": 2},
}


def classifier(shape: dict[str, object], num_classes: int = 5, seed: int = 0) -> Classifier:
    """A classifier in eval mode whose parameters all have nontrivial values."""
    model = ClassifierConfig(backbone=FocalNetConfig.from_dict(shape), num_classes=num_classes).build()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1))
    return model.eval()


def images(model: Classifier, size: int = 64) -> torch.Tensor:
    return torch.randn(2, model.shape.in_chans, size, size, generator=torch.Generator().manual_seed(1))
