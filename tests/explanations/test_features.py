"""Classifiers of timm without focal modulation: CAMs of the feature map that the head reads, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F

from focalnet import explain
from focalnet.errors import ConfigError
from focalnet.explanations import CONTROLS, METHODS, attribute
from focalnet.explanations.evaluation import evaluate
from focalnet.explanations.features import features_module, lacks_modulation
from tests.inference.small import classifier, noise

PIXELS = torch.sin(0.37 * torch.arange(3 * 64 * 96.0) ** 1.2).view(1, 3, 64, 96)


def network(name: str) -> Any:
    torch.manual_seed(0)
    if name == "convnext":  # (B, C, h, w); its norm comes after the pooling
        model = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=3)
    elif name == "dilated":
        model = timm.create_model(
            "convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), output_stride=16, num_classes=3
        )
    elif name == "swin":  # (B, h, w, C)
        model = timm.create_model(
            *("swin_tiny_patch4_window7_224",),
            **{"img_size": (64, 96), "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)},
            num_classes=3,
        )
    elif name == "resnet":
        model = timm.create_model("resnet10t", channels=(8, 8, 16, 16), num_classes=3)
    else:
        model = timm.create_model(
            "vit_tiny_patch16_224", img_size=(64, 96), embed_dim=16, depth=1, num_heads=2, num_classes=3
        )
    return model.eval()


@pytest.mark.parametrize(("name", "stride"), [("convnext", 32), ("dilated", 16), ("swin", 8), ("resnet", 32)])
def test_cams_are_of_what_the_head_reads(name: str, stride: int) -> None:
    model = network(name)
    features = model.forward_features(PIXELS)
    logits = model.forward_head(features)[0]
    positive = 0.0
    for label in range(3):
        (gradient,) = torch.autograd.grad(logits[label], features, retain_graph=True)
        pair = [x.permute(0, 3, 1, 2) if name == "swin" else x for x in (features.detach(), gradient)]
        assert pair[0].shape[2:] == (64 // stride, 96 // stride)
        expected = (pair[0] * pair[1].mean((2, 3), keepdim=True)).sum(1, keepdim=True).relu()
        found = attribute(model, PIXELS, label, "grad_cam")
        torch.testing.assert_close(found.values, F.interpolate(expected, (64, 96), mode="bilinear")[0, 0])
        assert found.blocks == (features_module(model, PIXELS),)
        positive += float(expected.max())
    assert positive > 0
    assert attribute(model, PIXELS, 1, "score_cam").values.shape == (64, 96)
    assert not any(module._forward_hooks for module in model.modules())


def test_methods_that_need_a_modulator_are_refused_by_name() -> None:
    model = network("convnext")
    for method in ("context_cam", "modulator_cam", "gates_cam", "modulator", "gates"):
        with pytest.raises(ConfigError, match=f'"{method}" needs focal modulation, and a ConvNeXt has none.*grad_cam'):
            attribute(model, PIXELS, 1, method)
    with pytest.raises(ConfigError, match="has no FocalNet block"):
        explain(model, PIXELS)
    with pytest.raises(ConfigError, match="blocks: a ConvNeXt has no FocalNet blocks"):
        attribute(model, PIXELS, 1, "grad_cam", blocks=["stages.3"])
    with pytest.raises(ConfigError, match="has no FocalNet block"):
        attribute(torch.nn.Conv2d(3, 3, 1), PIXELS, 1, "grad_cam")


def test_networks_without_a_feature_map_have_no_cams() -> None:
    model = network("vit")
    with pytest.raises(ConfigError, match=r"reads features \(1, 25, 16\), which are not a feature map"):
        attribute(model, PIXELS, 1, "grad_cam")
    found = attribute(model, PIXELS, 1, "integrated_gradients").values
    assert found.shape == (64, 96)
    assert found.abs().max() > 0


def test_focal_networks_are_told_from_others() -> None:
    assert not lacks_modulation(classifier())
    assert not lacks_modulation(timm.create_model("focalnet_tiny_srf"))
    assert lacks_modulation(network("convnext"))
    assert not lacks_modulation(torch.nn.Conv2d(3, 3, 1))  # which is refused


def test_other_networks_are_evaluated(tmp_path: Path) -> None:
    for i, name in enumerate(("ant", "bee", "cat")):
        (tmp_path / "test" / name).mkdir(parents=True)
        noise(70, 66, seed=i).save(tmp_path / "test" / name / "0.png")
    model = network("convnext")
    model.pretrained_cfg |= {"input_size": (3, 64, 64), "crop_pct": 1.0}
    found = evaluate(model, tmp_path, tmp_path / "out", measured=["insertion_patches", "road", "gini"], images=2)
    lacking = {"context_cam", "modulator_cam", "gates_cam", "modulator", "gates"}
    assert set(found.cells) == set(METHODS) - lacking
    assert set(CONTROLS) < set(found.cells)
    assert all(cell.images == 2 for row in found.cells.values() for cell in row.values())
    with pytest.raises(ConfigError, match='"modulator" needs focal modulation'):
        evaluate(model, tmp_path, tmp_path / "other", methods=["modulator"])
