"""timm's conventions: its factory, its feature maps, and the configuration of its data."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from transformers import AutoBackbone, TimmBackboneConfig

import focalnet
from focalnet.card import Preprocessing
from focalnet.data import eval_transform
from focalnet.errors import ConfigError, UnknownName
from focalnet.integrations import timm as integration
from tests.inference.small import CARD, noise

SMALL = {"depths": (1, 1, 1), "embed_dim": 8}


def images(side: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, side, side)


def test_create_model_builds_our_networks() -> None:
    torch.manual_seed(0)
    model = timm.create_model("focalnet_nano_fused", num_classes=7, drop_path_rate=0.1, **SMALL)
    assert isinstance(model, focalnet.Classifier)
    assert model.num_classes == 7
    assert model(images()).shape == (2, 7)
    assert set(timm.list_models("focalnet_*_fused")) == {f"{name}_fused" for name in integration.VARIANTS}
    assert not isinstance(timm.create_model("focalnet_tiny_srf"), focalnet.Classifier)  # timm's own stays


@pytest.mark.parametrize("name", ["focalnet_nano_fused", "focalnet_nano_fused.cifar10"])
def test_pretrained_weights(name: str) -> None:
    model, expected = timm.create_model(name, pretrained=True), focalnet.load("focalnet_nano.cifar10")
    assert model.training
    torch.testing.assert_close(model.state_dict(), expected.state_dict())
    assert timm.create_model(name, pretrained=True, num_classes=3).num_classes == 3


def test_feature_maps() -> None:
    features = timm.create_model("focalnet_nano_fused", features_only=True, out_indices=(0, 2), **SMALL)
    maps = features(images())
    assert [x.shape[1] for x in maps] == features.feature_info.channels() == [8, 32]
    assert [32 // x.shape[2] for x in maps] == features.feature_info.reduction() == [2, 8]
    loaded = timm.create_model("focalnet_nano_fused", pretrained=True, features_only=True).eval()
    model = focalnet.load("focalnet_nano.cifar10")
    x = images()
    torch.testing.assert_close(loaded(x), model.forward_intermediates(x, intermediates_only=True))


@pytest.mark.parametrize(
    ("out_indices", "stages"), [(None, [0, 1, 2]), ((0, -1), [0, 2]), ([1], [1]), (2, [1, 2]), ((2, 0), [0, 2])]
)
def test_stages_are_chosen_as_in_timm(out_indices: Any, stages: list[int]) -> None:
    features = timm.create_model("focalnet_nano_fused", features_only=True, out_indices=out_indices, **SMALL).eval()
    assert features.feature_info.channels() == [8 * 2**i for i in stages]
    assert features.feature_info.reduction() == [2 * 2**i for i in stages]
    assert features.feature_info.channels([0, 1, 2]) == [8, 16, 32]  # of all stages
    x = images()
    expected = features.backbone.forward_intermediates(x, stages, intermediates_only=True)
    torch.testing.assert_close(features(x), expected, rtol=0, atol=0)


def test_a_list_of_features_trains_and_is_copied() -> None:
    features = timm.create_model("focalnet_nano_fused", features_only=True, out_indices=(0, 1), **SMALL)
    x = images()
    gradients = []
    for recompute in (False, True):
        features.set_grad_checkpointing(recompute)
        features.zero_grad()
        sum(feature_map.square().mean() for feature_map in features(x)).backward()
        gradients.append({name: p.grad.clone() for name, p in features.named_parameters() if p.requires_grad})
    torch.testing.assert_close(*gradients)  # every parameter has a gradient: DDP would wait for it
    assert not any(p.requires_grad for p in features.backbone.layers[2].parameters())
    for twin in (copy.deepcopy(features), pickle.loads(pickle.dumps(features))):
        torch.testing.assert_close(twin(x), features(x), rtol=0, atol=0)
    half = copy.deepcopy(features).to(torch.bfloat16)(x.bfloat16())
    torch.testing.assert_close([m.float() for m in half], features(x), rtol=0.05, atol=0.05)


def test_transformers_finds_them_by_timms_name() -> None:
    config = TimmBackboneConfig(backbone="focalnet_nano_fused", out_indices=[1, 2])
    backbone = AutoBackbone.from_config(config).eval()
    assert backbone.channels == [128, 256]
    x = images()
    output = backbone(x, output_hidden_states=True)
    inner = backbone._backbone.backbone
    expected = inner.forward_intermediates(x, intermediates_only=True)
    torch.testing.assert_close(list(output.hidden_states), expected, rtol=0, atol=0)
    torch.testing.assert_close(list(output.feature_maps), expected[1:], rtol=0, atol=0)
    torch.testing.assert_close(list(backbone(x).feature_maps), expected[1:], rtol=0, atol=0)


def test_the_parts_of_a_classifier() -> None:
    model = timm.create_model("focalnet_nano_fused", num_classes=3, global_pool="avg", **SMALL).eval()
    x = images()
    features = model.forward_features(x)
    assert model.output_fmt == "NHWC"
    assert features.shape[3] == model.num_features == 32
    torch.testing.assert_close(model.forward_head(features), model(x), rtol=0, atol=0)
    model.reset_classifier(0, "avg")
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), model(x), rtol=0, atol=0)


def test_what_cannot_be() -> None:
    with pytest.raises(UnknownName, match=r'no weights "focalnet_nano\.ms_in1k" were published'):
        timm.create_model("focalnet_nano_fused.ms_in1k", pretrained=True)
    with pytest.raises(ConfigError, match="takes the tag of its weights"):
        timm.create_model("focalnet_nano_fused", pretrained_cfg={"url": "x"})
    with pytest.raises(ConfigError, match="does not take timm's option cache_dir"):
        timm.create_model("focalnet_nano_fused", cache_dir="x")
    with pytest.raises(ConfigError, match="out_indices needs features_only"):
        timm.create_model("focalnet_nano_fused", out_indices=(0,))
    with pytest.raises(ConfigError, match="output_stride=16"):
        timm.create_model("focalnet_nano_fused", features_only=True, output_stride=16)
    for out_indices in ((3,), (-4,), 4, ()):
        with pytest.raises(ConfigError, match="must be among the 3 stages"):
            timm.create_model("focalnet_nano_fused", features_only=True, out_indices=out_indices)
    with pytest.raises(ConfigError, match='global_pool="max" must be "avg"'):
        timm.create_model("focalnet_nano_fused", **SMALL).reset_classifier(3, "max")


def test_intermediates_are_those_of_timm() -> None:
    """The same weights in both libraries."""
    theirs = timm.models.FocalNet(depths=(1, 1), embed_dim=8, num_classes=5).eval()
    ours = focalnet.create_model("focalnet_tiny_srf", depths=(1, 1), embed_dim=8, num_classes=5).eval()
    state = integration.weights.checkpoint.LAYOUTS["timm"].to_native(theirs.state_dict())[0]
    ours.load_state_dict(state)
    x = images(64)
    for options in ({}, {"indices": [0]}, {"indices": 1}, {"indices": [-1], "norm": True}, {"norm": True}):
        for early in (False, True):
            last, expected = theirs.forward_intermediates(x, stop_early=early, **options)
            mine, found = ours.forward_intermediates(x, stop_early=early, **options)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(mine, last, rtol=1e-4, atol=1e-5)
    (channels_last,) = ours.forward_intermediates(x, [0], output_fmt="NHWC", intermediates_only=True)
    torch.testing.assert_close(channels_last.permute(0, 3, 1, 2), ours.forward_intermediates(x, [0])[1][0])


def test_intermediates_of_a_backbone_may_have_its_norms() -> None:
    backbone = focalnet.create_model("focalnet_nano", features_only=True, **SMALL).eval()
    x = images()
    found = backbone.forward_intermediates(x, norm=True, intermediates_only=True)
    torch.testing.assert_close(found, list(backbone(x).values()))


@pytest.mark.parametrize(
    "options", [{"indices": [3]}, {"indices": []}, {"indices": 4}, {"indices": 0}, {"output_fmt": "NLC"}]
)
def test_no_such_intermediates(options: dict[str, Any]) -> None:
    model = focalnet.create_model("focalnet_nano", **SMALL)
    with pytest.raises(ConfigError, match=r"must be (among the 3 stages|NCHW or NHWC)"):
        model.forward_intermediates(images(), **options)


@pytest.mark.parametrize(
    "how",
    [
        Preprocessing(image_size=48, crop_pct=0.875),
        Preprocessing(image_size=32, crop_pct=1.0, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3),
        Preprocessing(image_size=40, crop_pct=0.9, fit="squash"),
    ],
    ids=str,
)
def test_timm_prepares_images_as_the_card_says(how: Preprocessing) -> None:
    model = focalnet.create_model("focalnet_nano", **SMALL)
    model.card = dataclasses.replace(CARD, preprocessing=how)
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    for size in ((64, 50), (33, 90)):
        image: Image.Image = noise().resize(size)
        torch.testing.assert_close(transform(image), eval_transform(how)(image))


def test_torch_hub_finds_every_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    spec = importlib.util.spec_from_file_location("hubconf", Path(__file__).parents[2] / "hubconf.py")
    assert spec is not None
    assert spec.loader is not None
    hubconf: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hubconf)
    listed = {name for name in vars(hubconf) if callable(getattr(hubconf, name)) and not name.startswith("_")}
    assert listed == set(focalnet.list_models())  # as torch.hub.list finds them
    assert hubconf.focalnet_nano(num_classes=3, **SMALL).num_classes == 3
    assert hubconf.focalnet_nano(weights="focalnet_nano.cifar10").num_classes == 10
    assert all(importlib.util.find_spec(name) for name in hubconf.dependencies)
