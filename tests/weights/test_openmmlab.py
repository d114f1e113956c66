"""Detection checkpoints: mmdet's files, ours, and what ``load`` makes of them."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from focalnet import registry, weights
from focalnet.card import ModelCard, Preprocessing
from focalnet.errors import CheckpointError, ConfigError
from focalnet.models import Model
from focalnet.models.base import DetectorConfig
from focalnet.models.dino.layouts import to_release
from focalnet.nn.fpn import FPNConfig
from focalnet.weights import download
from focalnet.weights.layouts import openmmlab
from focalnet.zoo import load
from tests.models.small import METHODS, SIZES, config, images, mask2former, upernet
from tests.parity import openmmlab as golden
from tests.parity.golden import Case, cases

every_method = pytest.mark.parametrize("method", METHODS)
IMAGES = images()
CARD = ModelCard(name="mine", class_names=("a", "b", "c"), preprocessing=Preprocessing(image_size=64, max_size=96))


def built(method: str, **options: Any) -> Model[Any, Any]:
    torch.manual_seed(0)
    model = config(method, **options).build().eval()
    model.card = CARD
    return model


def official(model: torch.nn.Module, path: Path, **beside: Any) -> Path:
    torch.save({"meta": {"CLASSES": ("a", "b", "c"), "epoch": 36}, "state_dict": model.state_dict(), **beside}, path)
    return path


@every_method
def test_our_file_and_theirs_and_back(method: str, tmp_path: Path) -> None:
    model = built(method)
    ours = weights.save(model, tmp_path / "mine.safetensors")
    loaded = load(ours)
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert loaded.card == CARD
    assert not loaded.training
    theirs = weights.export(weights.read(ours), tmp_path / "theirs.pth", "openmmlab")
    content = torch.load(theirs, weights_only=True)
    assert content["meta"] == {"CLASSES": ("a", "b", "c")}
    assert content["state_dict"].keys() == model.state_dict().keys()
    again = weights.read(theirs)
    assert again.layout == "openmmlab"
    assert again.card.class_names == ("a", "b", "c")
    back = weights.read(weights.export(again, tmp_path / "back.safetensors", "native"))
    assert back.state_dict.keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in back.state_dict.items())
    with torch.no_grad():
        found, expected = (m.predict(IMAGES, SIZES, SIZES) for m in (loaded, model))
    for ours_, theirs_ in zip(found, expected, strict=True):
        assert torch.equal(ours_.scores, theirs_.scores)
        assert ours_.names == ("a", "b", "c")


@cases("openmmlab/*_rcnn_*.json")
def test_shapes_tell_which_rcnn(case: Case, tmp_path: Path) -> None:
    _gives_what_mmdet_gave(case, tmp_path)


@cases("openmmlab/atss_*.json")
def test_shapes_tell_atss(case: Case, tmp_path: Path) -> None:
    _gives_what_mmdet_gave(case, tmp_path)


def _gives_what_mmdet_gave(case: Case, folder: Path) -> None:
    """A released file has no configuration beside it: names, shapes and what was published are enough."""
    path, tensors, facts = folder / "released.pth", case.tensors, case.facts
    if facts["config"]["type"] == "CascadeRCNN" and facts["config"]["roi_head"]["num_stages"] != 3:
        pytest.skip("nobody published a cascade of another number of stages")
    torch.save({"meta": {}, "state_dict": golden.state(tensors)}, path)
    read = weights.read(path).config
    assert isinstance(read, DetectorConfig)
    official = type(read).from_official(facts["config"])
    options = golden.unpublished(official, "score_threshold", "nms_threshold", "max_per_image", "candidates", "rpn")
    model = load(path, **options)
    batch, sizes = golden.images(case)
    with torch.no_grad():
        found = model.predict(batch, sizes, golden.original_sizes(case))
    for i, result in enumerate(found):
        golden.assert_detections(result, tensors, f"det_rescaled.{i}")


def test_wrappers_and_leftovers(tmp_path: Path) -> None:
    model = built("mask_rcnn")
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    state |= {"module.backbone.norm.weight": torch.ones(64), "module.backbone.head.bias": torch.ones(1000)}
    state |= {"ema_backbone_patch_embed_proj_weight": torch.ones(2)}
    torch.save({"state_dict": state, "meta": {"dataset_meta": {"classes": ["x", "y", "z"]}}}, tmp_path / "wrapped.pth")
    checkpoint = weights.read(tmp_path / "wrapped.pth")
    assert set(checkpoint.unused) == {
        "backbone.norm.weight",
        "backbone.head.bias",
        "ema_backbone_patch_embed_proj_weight",
    }
    assert checkpoint.card.class_names == ("x", "y", "z")
    assert "unused      3" in str(checkpoint.report())
    assert load(tmp_path / "wrapped.pth").config.masks


def test_class_names_that_do_not_count_right_are_left_out(tmp_path: Path) -> None:
    path = official(built("atss", num_classes=4), tmp_path / "x.pth")
    assert weights.read(path).card.class_names == ()


@every_method
def test_other_classes_give_new_heads(method: str, tmp_path: Path) -> None:
    model = built(method)
    path = weights.save(model, tmp_path / "x.safetensors")
    loaded = load(path, num_classes=5, score_threshold=0.1, drop_path_rate=0.1)
    assert loaded.config.num_classes == 5
    assert (loaded.config.score_threshold, loaded.config.backbone.drop_path_rate) == (0.1, 0.1)
    assert (loaded.card.class_names, loaded.card.metrics) == ((), {})
    old, new = model.state_dict(), loaded.state_dict()
    layers = [key.rpartition(".")[0].rstrip("0123456789.") for key in new if new[key].shape != old[key].shape]
    changed = {layer.rpartition(".")[2] for layer in layers}
    assert changed <= {"fc_cls", "fc_reg", "conv_logits", "atss_cls", "cls_branches", "label_embedding"}
    assert all(torch.equal(value, old[key]) for key, value in new.items() if value.shape == old[key].shape)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("mask_rcnn", {"mask_channels": 32}),
        ("mask_rcnn", {"neck": FPNConfig(channels=32)}),
        ("atss", {"channels": 32}),
        ("sparse_rcnn", {"proposals": 20}),
        ("dino", {"num_queries": 20}),
        ("upernet", {"channels": 16}),
        ("mask2former", {"num_queries": 9}),
    ],
)
@pytest.mark.parametrize("classes", [3, 5])
def test_other_classes_are_no_reason_to_forget_other_layers(
    method: str, options: dict[str, Any], classes: int, tmp_path: Path
) -> None:
    network = {"upernet": upernet, "mask2former": mask2former}.get(method, partial(config, method))()
    path = weights.save(network.build(), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=f"these weights have {next(iter(options))}=.*leave out the option"):
        load(path, num_classes=classes, **options)


def test_the_backbone_alone(tmp_path: Path) -> None:
    model = built("atss")
    backbone = load(weights.save(model, tmp_path / "x.safetensors"), features_only=True)
    with torch.no_grad():
        for a, b in zip(backbone(IMAGES).values(), model.backbone(IMAGES).values(), strict=True):
            assert torch.equal(a, b)


def test_a_published_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "mask_rcnn_focalnet_tiny_lrf"
    variants = registry.family_of(name).variants
    narrow = {**variants[name].shape, "embed_dim": 4, "depths": (1, 1, 1, 1)}
    monkeypatch.setitem(variants, name, replace(variants[name], shape=narrow))
    path = tmp_path / "official.pth"
    model = config("mask_rcnn", **narrow, num_classes=80).build()
    torch.save({"state_dict": model.state_dict()}, path)
    monkeypatch.setattr(download, "local_file", lambda _: path)
    loaded = load(f"{name}.ms_coco_3x")
    assert loaded.card.metrics == {"coco_box_ap": 48.0, "coco_mask_ap": 42.9}
    assert loaded.card.class_names[:2] == ("person", "bicycle")
    assert len(loaded.card.class_names) == 80
    assert loaded.card.preprocessing.max_size == 1333
    assert loaded.config.backbone == registry.configure(name).backbone
    assert weights.read(path).architecture == name
    with pytest.raises(CheckpointError, match=r"it is not a mask_rcnn_focalnet_tiny_srf.*it looks like"):
        weights.read(path, architecture="mask_rcnn_focalnet_tiny_srf")


def test_a_dead_link_says_where_to_put_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from focalnet.errors import DownloadError

    monkeypatch.setattr(download, "folder", lambda: tmp_path)
    with pytest.raises(DownloadError, match=r"if you have focalnet_tiny_lrf_atss_3x\.pth, put it at .*or give a path"):
        load("atss_focalnet_tiny_lrf.ms_coco_3x")


@every_method
def test_a_file_with_a_part_missing(method: str, tmp_path: Path) -> None:
    state = built(method).state_dict()
    gone = next(key for key in state if key.startswith(("neck.lateral_convs.1", "neck.convs.1")))
    torch.save({"state_dict": {k: v for k, v in state.items() if k != gone}}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=rf"x\.pth: does not fit the model.*missing \({gone}"):
        load(tmp_path / "x.pth")


def test_what_cannot_be_done(tmp_path: Path) -> None:
    path = weights.save(built("atss"), tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match=r"these weights have focal_windows=\(3, 3, 3, 3\)"):
        load(path, focal_windows=(9, 9, 9, 9))
    with pytest.raises(CheckpointError, match="only a classifier has a timm layout; this is a detector"):
        weights.export(weights.read(path), tmp_path / "y.pth", "timm")
    assert openmmlab.unwrap({"backbone.patch_embed.proj.weight": torch.ones(1)}) is None


def test_what_their_file_does_not_tell_of_a_detector(tmp_path: Path) -> None:
    model = built("mask_rcnn")
    published = weights.read(weights.save(model, tmp_path / "mine.safetensors"))
    own = replace(published, config=replace(model.config, rpn=replace(model.config.rpn, anchor_scale=4.0)))
    left = {}
    for name, checkpoint in (("published", published), ("own", own)):
        left[name] = weights.untold(checkpoint, weights.export(checkpoint, tmp_path / f"{name}.pth", "openmmlab"))
    assert left["own"] == {**left["published"], "rpn.anchor_scale": 4.0}
    assert "preprocessing.max_size" in left["published"]
    assert "class_names" not in left["published"]


def test_a_dino_of_the_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "dino_focalnet_large_fl4"
    variants = registry.family_of(name).variants
    narrow = {**variants[name].shape, "embed_dim": 4, "depths": (1, 1, 1, 1)}
    monkeypatch.setitem(variants, name, replace(variants[name], shape=narrow))
    shape = {"channels": 32, "heads": 4, "num_queries": 12, "max_per_image": 12, "scales": 5, "feedforward_channels": 8}
    layers: dict[str, Any] = {"encoder_layers": 1, "decoder_layers": 2}
    network: Any = registry.configure(name, num_classes=91, spare_labels=1, **shape, **layers).build().eval()
    torch.nn.init.normal_(network.bbox_head.cls_branches[0].weight)
    beside = {"args": argparse.Namespace(modelname="dino"), "epoch": 3}
    path = tmp_path / "release.pth"
    torch.save({"model": to_release(network.state_dict(), network.config), **beside}, path)
    monkeypatch.setattr(download, "local_file", lambda _: path)
    loaded: Any = load(f"{name}.ms_o365_coco", max_per_image=12)
    assert loaded.card.class_names[-1] == "toothbrush"  # id 90
    assert loaded.card.metrics == {"coco_box_ap": 63.5}
    expected = replace(network.config, num_classes=80, spare_labels=0)
    assert loaded.config == expected
    used = [number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
    for key, value in loaded.state_dict().items():
        named = "cls_branches" in key or "label_embedding" in key
        assert torch.equal(value, network.state_dict()[key][used] if named else network.state_dict()[key]), key
