"""UPerNet and Mask2Former checkpoints: OpenMMLab's files, ours, and what ``load`` makes of them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from focalnet import registry, weights
from focalnet.card import ModelCard, Preprocessing
from focalnet.errors import CheckpointError, DownloadError
from focalnet.models import Mask2Former, Mask2FormerConfig, UPerNet, UPerNetConfig
from focalnet.weights import download
from focalnet.zoo import load
from tests.models.small import ORIGINALS, SIZES, images, mask2former, upernet
from tests.parity import openmmlab as golden
from tests.parity.golden import Case, cases

IMAGES = images()
CARD = ModelCard(name="mine", class_names=("a", "b", "c"), preprocessing=Preprocessing(image_size=64, max_size=96))


@pytest.fixture
def model() -> UPerNet:
    torch.manual_seed(0)
    network = upernet().build().eval()
    assert isinstance(network, UPerNet)
    network.card = CARD
    return network


def test_our_file_and_theirs_and_back(model: UPerNet, tmp_path: Path) -> None:
    ours = weights.save(model, tmp_path / "mine.safetensors")
    loaded = load(ours)
    assert isinstance(loaded, UPerNet)
    assert (loaded.config, loaded.card, loaded.training) == (model.config, CARD, False)
    theirs = weights.export(weights.read(ours), tmp_path / "theirs.pth", "openmmlab")
    content = torch.load(theirs, weights_only=True)
    assert content["meta"]["CLASSES"] == ("a", "b", "c")
    assert len(content["meta"]["PALETTE"]) == len({tuple(colour) for colour in content["meta"]["PALETTE"]}) == 3
    again = weights.read(theirs)
    assert (again.layout, again.card.class_names) == ("openmmlab", ("a", "b", "c"))
    assert again.card.preprocessing.max_size == 2048
    back = weights.read(weights.export(again, tmp_path / "back.safetensors", "native"))
    assert isinstance(back.config, UPerNetConfig)
    assert back.config == model.config
    assert back.state_dict.keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in back.state_dict.items())
    with torch.no_grad():
        found, expected = (m.predict(IMAGES, SIZES, ORIGINALS) for m in (loaded, model))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.labels, other.labels)
        assert one.names == ("a", "b", "c")


@cases("openmmlab/upernet_*.json")
def test_a_released_file(case: Case, tmp_path: Path) -> None:
    """It has no configuration beside it: names, shapes and what was published are enough, wrapped or not."""
    tensors, facts = case.tensors, case.facts
    official = UPerNetConfig.from_official(facts["config"])
    if official.pool_scales != UPerNetConfig.pool_scales:
        pytest.skip("other pool scales leave no trace but their number")
    names = tuple(f"class {i}" for i in range(official.num_classes))
    state = {f"module.{key}": value for key, value in golden.state(tensors).items()}
    state |= {"module.backbone.norm.weight": torch.ones(64), "module.backbone.head.bias": torch.ones(1000)}
    path = tmp_path / "released.pth"
    torch.save({"meta": {"CLASSES": names, "PALETTE": [[0, 0, 0]] * len(names)}, "state_dict": state}, path)
    checkpoint = weights.read(path)
    assert set(checkpoint.unused) == {"backbone.norm.weight", "backbone.head.bias"}
    model = load(path)
    assert isinstance(model, UPerNet)
    assert model.state_dict().keys() == golden.state(tensors).keys()
    assert model.class_names == names
    rule = facts["input"]
    mean, std = (torch.tensor(rule[name])[:, None, None] for name in ("mean", "std"))
    size, original = (tuple(facts["img_meta"][name]) for name in ("img_shape", "ori_shape"))
    with torch.no_grad():
        (found,) = model.predict(((tensors["img"].float() - mean) / std)[None], [size], [original])
    assert (found.labels == tensors["whole.pred"]).float().mean() > 0.999


def test_other_classes_give_new_classifiers(model: UPerNet, tmp_path: Path) -> None:
    path = weights.save(model, tmp_path / "x.safetensors")
    loaded = load(path, num_classes=5, dropout=0.2, drop_path_rate=0.1)
    assert isinstance(loaded, UPerNet)
    assert (loaded.config.num_classes, loaded.config.dropout, loaded.config.backbone.drop_path_rate) == (5, 0.2, 0.1)
    assert (loaded.class_names, loaded.card and loaded.card.metrics) == ((), {})
    old, new = model.state_dict(), loaded.state_dict()
    changed = {key for key in new if new[key].shape != old[key].shape}
    assert changed == {f"{head}.conv_seg.{w}" for head in ("decode_head", "auxiliary_head") for w in ("weight", "bias")}
    assert all(torch.equal(new[key], old[key]) for key in new.keys() - changed)


def test_a_published_name(model: UPerNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "upernet_focalnet_tiny_lrf"
    variants = registry.family_of(name).variants
    narrow = {**variants[name].shape, "embed_dim": 4, "depths": (1, 1, 1, 1)}
    monkeypatch.setitem(variants, name, replace(variants[name], shape=narrow))
    path = tmp_path / "official.pth"
    torch.save({"state_dict": upernet(**narrow, num_classes=150).build().state_dict()}, path)
    monkeypatch.setattr(download, "local_file", lambda _: path)
    loaded = load(f"{name}.ms_ade20k")
    assert loaded.card is not None
    assert loaded.card.metrics == {"ade20k_miou": 46.8, "ade20k_miou_ms": 47.8}
    assert loaded.class_names[:2] == ("wall", "building")
    assert loaded.card.preprocessing.image_size == 512
    assert weights.read(path).architecture == name
    assert weights.read(path).card.class_names == loaded.class_names


def test_a_dead_link_says_where_to_put_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "folder", lambda: tmp_path)
    with pytest.raises(DownloadError, match=r"if you have focalnet_tiny_lrf_upernet_160k\.pth, put it at .*or give a"):
        load("upernet_focalnet_tiny_lrf.ms_ade20k")


def test_the_backbone_alone(model: UPerNet, tmp_path: Path) -> None:
    backbone = load(weights.save(model, tmp_path / "x.safetensors"), features_only=True)
    with torch.no_grad():
        for a, b in zip(backbone(IMAGES).values(), model.backbone(IMAGES).values(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("gone", ["decode_head.conv_seg.weight", "auxiliary_head.convs.0.bn.running_var"])
def test_a_file_with_a_part_missing(model: UPerNet, tmp_path: Path, gone: str) -> None:
    state = model.state_dict()
    del state[gone]
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=rf"x\.pth: .*missing.*{gone}"):
        load(tmp_path / "x.pth")


def test_other_pool_scales_leave_no_trace_but_their_number(tmp_path: Path) -> None:
    torch.save({"state_dict": upernet(pool_scales=(1, 2)).build().state_dict()}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth: .*psp_modules\.2"):
        load(tmp_path / "x.pth")


def test_what_a_segmenter_cannot_become(model: UPerNet, tmp_path: Path) -> None:
    path = weights.save(model, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="only a classifier has a timm layout; this is a segmenter, which has op"):
        weights.export(weights.read(path), tmp_path / "y.pth", "timm")
    assert not (tmp_path / "y.pth").exists()


# --- Mask2Former


@pytest.fixture
def finder() -> Mask2Former:
    torch.manual_seed(0)
    network = mask2former(channels=32, heads=4, norm_groups=32, num_things=None, stem_padding=3).build().eval()
    assert isinstance(network, Mask2Former)
    network.card = CARD
    return network


def test_mask2former_in_our_file_and_theirs_and_back(finder: Mask2Former, tmp_path: Path) -> None:
    ours = weights.save(finder, tmp_path / "mine.safetensors")
    theirs = weights.export(weights.read(ours), tmp_path / "theirs.pth", "openmmlab")
    assert torch.load(theirs, weights_only=True)["meta"]["CLASSES"] == ("a", "b", "c")
    again = weights.read(theirs)
    assert (again.layout, again.card.class_names) == ("openmmlab", ("a", "b", "c"))
    assert (again.card.preprocessing.image_size, again.card.preprocessing.max_size) == (800, 1333)
    back = load(weights.export(again, tmp_path / "back.safetensors", "native"))
    assert isinstance(back, Mask2Former)
    untraced = {name: getattr(finder.config, name) for name in ("object_threshold", "train_points")}
    assert replace(back.config, **untraced) == finder.config
    assert all(torch.equal(value, finder.state_dict()[key]) for key, value in back.state_dict().items())
    other = load(ours, num_classes=5).state_dict()
    changed = {key for key, value in finder.state_dict().items() if value.shape != other[key].shape}
    assert changed == {"panoptic_head.cls_embed.weight", "panoptic_head.cls_embed.bias"}


@cases("openmmlab/mmdet_mask2former_*.json")
def test_a_mask2former_file(case: Case, tmp_path: Path) -> None:
    """Groups of the norms and number of things leave no trace: this one's are not those of COCO."""
    path = tmp_path / "theirs.pth"
    state = {f"module.{key}": value for key, value in golden.state(case.tensors).items()}
    official = Mask2FormerConfig.from_official(case.facts["config"])
    names = tuple(f"class {i}" for i in range(official.num_classes))
    torch.save({"meta": {"dataset_meta": {"classes": names}}, "state_dict": state}, path)
    read = weights.read(path)
    assert isinstance(read.config, Mask2FormerConfig)
    assert (read.config.segments, read.config.num_things) == ("panoptic", None)
    assert read.config.norm_groups == math.gcd(32, official.channels)
    model = load(path, norm_groups=official.norm_groups, num_things=official.num_things, segments=official.segments)
    assert isinstance(model, Mask2Former)
    assert model.class_names == names
    untraced = ("train_points", "importance", "oversample", "object_threshold", "overlap_threshold", "max_per_image")
    assert replace(model.config, **{name: getattr(official, name) for name in untraced}) == official
    assert model.state_dict().keys() == golden.state(case.tensors).keys()


@pytest.mark.parametrize(("classes", "segments", "things"), [(80, "instance", 80), (133, "panoptic", 80)])
def test_mask2formers_of_coco(classes: int, segments: str, things: int, tmp_path: Path) -> None:
    torch.save(mask2former(num_classes=classes).build().state_dict(), tmp_path / "x.pth")
    config = weights.read(tmp_path / "x.pth").config
    assert isinstance(config, Mask2FormerConfig)
    assert (config.segments, config.things, config.num_classes) == (segments, things, classes)


def test_a_named_mask2former_has_the_norms_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "mask2former_focalnet_large_fl3"
    variants = registry.family_of(name).variants
    narrow = {**variants[name].shape, "embed_dim": 4, "depths": (1, 1, 1, 1)}
    monkeypatch.setitem(variants, name, replace(variants[name], shape=narrow))
    model = mask2former(**narrow).build()
    torch.save(model.state_dict(), tmp_path / "x.pth")
    read = weights.read(tmp_path / "x.pth")
    assert read.architecture == name
    assert read.backbone.post_norm
    assert read.backbone == model.config.backbone


@pytest.mark.parametrize("gone", ["panoptic_head.mask_embed.0.weight", "panoptic_head.level_embed.weight"])
def test_a_mask2former_with_a_part_missing(finder: Mask2Former, gone: str, tmp_path: Path) -> None:
    state = finder.state_dict()
    del state[gone]
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=rf"x\.pth: .*missing.*{gone}"):
        load(tmp_path / "x.pth")
