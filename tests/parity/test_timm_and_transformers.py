"""Independent references: every architecture that timm or transformers share with us, at a tenth of its width.

Same weights, same image: the same feature maps of each stage (timm), logits and gradients of the image. The widths are
shrunk, depths, levels, windows and norms are those of the published network.
"""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from focalnet import Classifier, create_model
from focalnet.models.variants import VARIANTS
from focalnet.weights.layouts import LAYOUTS
from tests.weights.test_layouts import huggingface_twin, logits_of, timm_twin

SHARED = [name for name in VARIANTS if name in timm.list_models("focalnet_*")]
ISOTROPIC = [name for name in VARIANTS if name.endswith("_iso")]


def shrunk(name: str) -> Classifier:
    """The architecture with narrow stages and weights far from trivial, so that everything in it shows."""
    torch.manual_seed(0)
    shape: dict[str, Any] = VARIANTS[name].shape
    model = create_model(name, embed_dim=shape["embed_dim"] // 10, num_classes=7).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def logits_and_gradient(model: torch.nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = images.clone().requires_grad_()
    out = model(leaf)
    logits = out.logits if hasattr(out, "logits") else out
    (gradient,) = torch.autograd.grad(logits.square().sum(), leaf)
    return logits.detach(), gradient


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("library", ["timm", "huggingface"])
@pytest.mark.parametrize("name", SHARED)
def test_logits_and_gradients(name: str, library: str) -> None:
    ours = shrunk(name)
    theirs = (timm_twin if library == "timm" else huggingface_twin)(ours)
    theirs.load_state_dict(LAYOUTS[library].from_native(ours.state_dict(), ours.shape))
    images = torch.randn(1, 3, 64, 96)
    for mine, other in zip(logits_and_gradient(ours, images), logits_and_gradient(theirs, images), strict=True):
        assert_same(mine, other)


@pytest.mark.parametrize("name", ISOTROPIC)
def test_transformers_can_be_isotropic(name: str) -> None:
    ours = shrunk(name)
    theirs = huggingface_twin(ours)
    theirs.load_state_dict(LAYOUTS["huggingface"].from_native(ours.state_dict(), ours.shape))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert_same(ours(images), logits_of(theirs, images))


@pytest.mark.parametrize("name", SHARED)
def test_feature_maps_of_each_stage(name: str) -> None:
    ours = shrunk(name)
    theirs = timm_twin(ours)
    theirs.load_state_dict(LAYOUTS["timm"].from_native(ours.state_dict(), ours.shape))
    images = torch.randn(1, 3, 70, 101)  # odd: both drop what does not fill a patch
    with torch.no_grad():
        features = theirs.forward_intermediates(images, intermediates_only=True)
        for mine, other in zip(ours.forward_stages(images), features, strict=True):
            assert_same(mine.permute(0, 3, 1, 2), other)
