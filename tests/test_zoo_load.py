"""``focalnet.load``: names, files, options, and what it says when they do not fit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import focalnet
from focalnet import weights, zoo
from focalnet.card import ModelCard
from focalnet.errors import CheckpointError, ConfigError, UnknownName
from focalnet.models import Classifier
from focalnet.models.backbone import FocalNetConfig
from focalnet.models.variants import VARIANTS, Variant
from focalnet.weights import UnsettledSetting, catalogue, download
from focalnet.weights.catalogue import Entry
from focalnet.zoo import load
from tests.weights.small import LARGE, PLAIN, classifier, images


@pytest.fixture
def plain(tmp_path: Path) -> tuple[Classifier, Path]:
    model = classifier(PLAIN)
    model.card = ModelCard(name="mine", class_names=tuple("abcde"), metrics={"top1": 90.0})
    return model, weights.save(model, tmp_path / "mine.safetensors")


def test_our_file(plain: tuple[Classifier, Path]) -> None:
    model, path = plain
    loaded = load(path)
    assert not loaded.training
    assert loaded.card == model.card
    with torch.no_grad():
        assert torch.equal(loaded(images(model)), model(images(model)))
    assert all(parameter.requires_grad and parameter.device.type == "cpu" for parameter in loaded.parameters())


def test_the_public_name(plain: tuple[Classifier, Path]) -> None:
    assert isinstance(focalnet.load(str(plain[1])), Classifier)


@pytest.mark.parametrize("layout", ["microsoft", "timm", "huggingface"])
def test_foreign_files_give_the_same_logits(plain: tuple[Classifier, Path], tmp_path: Path, layout: str) -> None:
    model, path = plain
    theirs = weights.export(weights.read(path), tmp_path / "theirs.pth", layout)
    with torch.no_grad():
        assert torch.equal(load(theirs, post_norm=False)(images(model)), model(images(model)))


def test_another_number_of_classes_gives_a_new_head(plain: tuple[Classifier, Path]) -> None:
    model, path = plain
    loaded = load(path, num_classes=3)
    assert loaded.head.weight.shape == (3, 16)
    assert loaded.head.bias.abs().sum() == 0
    assert 0 < loaded.head.weight.std() < 0.1
    assert torch.equal(loaded.norm.weight, model.norm.weight)
    assert loaded.card is not None
    assert (loaded.card.class_names, loaded.card.metrics) == ((), {})
    assert load(path, num_classes=5).card == model.card


def test_a_seed_decides_what_is_new(plain: tuple[Classifier, Path]) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(load(plain[1], num_classes=3, focal_levels=(3, 4)).state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_no_head_at_all(plain: tuple[Classifier, Path]) -> None:
    model, path = plain
    assert load(path, num_classes=0)(images(model)).shape == (2, 16)


def test_features_only(plain: tuple[Classifier, Path]) -> None:
    model, path = plain
    backbone = load(path, features_only=True, out_indices=(1,))
    with torch.no_grad():
        maps = backbone(images(model))
        *_, last = model.forward_stages(images(model))
    assert maps.keys() == {"s8"}
    expected = torch.nn.functional.layer_norm(last, (16,)).permute(0, 3, 1, 2)
    torch.testing.assert_close(maps["s8"], expected)  # the norm of the map is new: ones and zeros


def test_other_windows_and_more_levels(plain: tuple[Classifier, Path]) -> None:
    _, path = plain
    backbone = load(path, features_only=True, focal_windows=(9, 9), focal_levels=(3, 2))
    kernels = backbone.layers[0].blocks[0].modulation.focal_layers
    assert [layer[0].weight.shape[-1] for layer in kernels] == [9, 11, 13]
    assert kernels[0][0].weight[..., 0, 0].abs().sum() == 0
    assert kernels[2][0].weight.std() > 0  # a new level starts from its random kernel
    assert isinstance(load(path, focal_windows=(5, 5)), Classifier)


def test_options_that_change_no_tensor(plain: tuple[Classifier, Path]) -> None:
    config = load(plain[1], drop_path_rate=0.3, pad_to_stride=True).config.backbone
    assert (config.drop_path_rate, config.pad_to_stride) == (0.3, True)


def test_a_trained_model_does_not_write_into_its_file(plain: tuple[Classifier, Path]) -> None:
    model, path = plain
    loaded = load(path)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.zero_()
    assert torch.equal(load(path).norm.weight, model.norm.weight)


def test_a_backbone_file(tmp_path: Path) -> None:
    backbone = FocalNetConfig.from_dict(PLAIN).build()
    torch.nn.init.normal_(backbone.norm1.weight)
    path = weights.save(backbone, tmp_path / "b.safetensors")
    assert torch.equal(load(path, features_only=True).norm1.weight, backbone.norm1.weight)
    with pytest.raises(
        CheckpointError, match=r"b\.safetensors: holds a bare backbone; load it with features_only=True"
    ):
        load(path)


# --- What it says when something does not fit --------------------------------------------------------------------


def one_line(error: type[Exception], says: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error, match=says) as raised:
        call()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("focalnet_tiny_lrv.ms_in1k", r'did you mean "focalnet_tiny_lrf\.ms_in1k".*"focalnet models" lists all'),
        ("focalnet_tiny_lrf", r'is an architecture: its weights are focalnet_tiny_lrf\.ms_in1k; create_model\("'),
        ("focalnet_tiny_srf_deep", r"no weights of it were published; create_model"),
        ("something", r'no weights or file "something"'),
    ],
)
def test_unknown_names(name: str, says: str) -> None:
    one_line(UnknownName, says, lambda: load(name))


@pytest.mark.parametrize("path", ["nowhere.pth", "no/where", "x.safetensors"])
def test_unreadable_paths(path: str) -> None:
    one_line(CheckpointError, f"{path}: cannot be read: No such file or directory", lambda: load(path))


def test_a_checkpoint_of_another_architecture(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.save(resnet18().state_dict(), tmp_path / "resnet.pth")
    one_line(
        CheckpointError, r'resnet\.pth: its keys \("conv1\.weight".*not those of', lambda: load(tmp_path / "resnet.pth")
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mlp_ratio": 1.0}, r"these weights have mlp_ratio=4.0, not 1.0; leave out the option"),
        ({"embed_dim": 16}, r"these weights have embed_dim=8, not 16"),
        ({"depths": (1, 1)}, r"these weights have depths=\(1, 2\)"),
        ({"layer_scale": 1e-4}, r"these weights have layer_scale=None"),
        ({"focal_levels": (1, 2)}, r"more focal levels than the model"),
        ({"focal_window": 3}, r'no option "focal_window"; did you mean "focal_windows"'),
        ({"num_classes": -1}, r"num_classes=-1 must be 0"),
        ({"num_classes": 10**13}, r"does not fit into memory, it needs [0-9,.]+ GB for one tensor: lower num_classes"),
    ],
)
def test_options_the_weights_cannot_follow(plain: tuple[Classifier, Path], options: dict[str, Any], says: str) -> None:
    one_line(ConfigError, says, lambda: load(plain[1], **options))


def test_a_dense_checkpoint_names_its_task() -> None:
    one_line(
        CheckpointError,
        r"detection \(Relation-DETR\).*will load it",
        lambda: load("relation_detr_focalnet_large_fl4.o365_coco"),
    )


# --- By name ------------------------------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes the architecture of an entry small, and puts a file of random weights where its download would be."""

    def publish(name: str) -> Path:
        entry = catalogue.find(name)
        shape = {**VARIANTS[entry.architecture].shape, "embed_dim": 4, "depths": (1, 1, 1, 1)}
        monkeypatch.setitem(VARIANTS, entry.architecture, Variant(shape, num_classes=1000))
        path = tmp_path / "official.pth"
        torch.save({"model": classifier(shape, num_classes=1000).state_dict()}, path)
        monkeypatch.setattr(download, "local_file", lambda _: path)
        return path

    return publish


def test_a_published_name(published: Callable[[str], Path]) -> None:
    published("focalnet_tiny_lrf.ms_in1k")
    model = load("focalnet_tiny_lrf.ms_in1k")
    assert model.card is not None
    assert model.card.name == "focalnet_tiny_lrf.ms_in1k"
    assert model.card.class_names[0] == "tench, Tinca tinca"
    assert model.card.metrics == {"imagenet1k_top1": 82.3}
    assert model.card.preprocessing.crop_pct == 0.875


def test_the_fl4_models_say_what_is_not_settled(published: Callable[[str], Path]) -> None:
    path = published("focalnet_large_fl4.ms_in22k")
    for source in ("focalnet_large_fl4.ms_in22k", path):
        with pytest.warns(
            UnsettledSetting, match=r"normalize_modulator=True is not settled: .*timm.*Choose with load"
        ) as said:
            assert load(source).config.backbone.normalize_modulator is True
        assert said[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert load(source, normalize_modulator=False).config.backbone.normalize_modulator is False
            assert load(source, normalize_modulator=True).config.backbone.normalize_modulator is True


def test_an_embedded_file_keeps_its_own_card(plain: tuple[Classifier, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = plain
    entry = Entry(name="ours.x", task="classification", architecture="focalnet_nano", labels="cifar10", embedded=path)
    entries = {**catalogue.entries(), "ours.x": entry}
    for module in (catalogue, weights, weights.checkpoint):
        monkeypatch.setattr(module, "entries", lambda: entries)
    assert load("ours.x").card == model.card


def test_nothing_is_allocated_twice(tmp_path: Path) -> None:
    path = weights.save(classifier(LARGE), tmp_path / "x.safetensors")
    checkpoint = weights.read(path)
    with torch.device("meta"):
        built = checkpoint.config.build()
    zoo._fill(built, checkpoint)
    stored = checkpoint.state_dict["norm.weight"].untyped_storage().data_ptr()
    assert built.norm.weight.untyped_storage().data_ptr() == stored


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    model = focalnet.create_model("focalnet_nano", num_classes=2)
    with torch.no_grad():
        model.head.weight[0, 0], model.norm.bias[0] = float("nan"), float("inf")
    file = weights.save(model, tmp_path / "x.safetensors")
    with pytest.warns(weights.NonFiniteWeights, match=r"2 of its tensors \(head\.weight, norm\.bias\) hold NaN or inf"):
        load(file)


def test_other_channels_are_adapted_as_timm_does(plain: tuple[Classifier, Path]) -> None:
    model, path = plain
    stem = model.state_dict()["patch_embed.proj.weight"]
    gray = images(model)[:, :1]
    with torch.no_grad():
        torch.testing.assert_close(load(path, in_chans=1)(gray), model(gray.expand(-1, 3, -1, -1)))
    for channels in (2, 4, 13):
        loaded = load(path, in_chans=channels)
        adapted = loaded.state_dict()["patch_embed.proj.weight"]
        torch.testing.assert_close(adapted, stem.repeat(1, 5, 1, 1)[:, :channels] * 3 / channels)
        how = loaded.card.preprocessing
        assert how.mean == (*((0.485, 0.456, 0.406) * 5),)[:channels]
        assert loaded(torch.zeros(1, channels, 32, 32)).shape == (1, 5)
    assert load(path, in_chans=1).card.preprocessing.mean == pytest.approx((0.449,))
    assert load(path, in_chans=4, features_only=True).shape.in_chans == 4
    with pytest.raises(ConfigError, match="in_chans"):
        load(path, in_chans=0)


def test_weights_of_other_than_three_channels_are_not_adapted(tmp_path: Path) -> None:
    path = weights.save(classifier({**PLAIN, "in_chans": 4}), tmp_path / "four.safetensors")
    with pytest.raises(ConfigError, match="these weights have in_chans=4, not 3"):
        load(path, in_chans=3)


def test_options_of_a_part_change_a_few_of_its_fields(tmp_path: Path) -> None:
    path = weights.save(focalnet.create_model("atss_focalnet_nano", num_classes=2), tmp_path / "own.safetensors")
    has = load(path).config.neck
    assert load(path, neck={"levels": has.levels}).config.neck == has
    for options, expected in (({"neck": {"channels": 64}}, "neck"), ({"neck": {"chanels": 64}}, '"chanels"')):
        with pytest.raises((CheckpointError, ConfigError), match=expected):
            load(path, **options)
    with torch.no_grad():
        loaded = load(path, in_chans=1)
    assert loaded.state_dict()["backbone.patch_embed.proj.weight"].shape[1] == 1
