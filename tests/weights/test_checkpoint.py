"""(config, state dict) from files of every layout, and back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from focalnet import weights
from focalnet.card import ModelCard, Preprocessing
from focalnet.errors import CheckpointError, ConfigError
from focalnet.models.backbone import FocalNetConfig
from focalnet.weights.checkpoint import HEADER, describe
from tests.weights.small import CONFIGS, LARGE, ONLY_OURS, PLAIN, classifier, images

CARD = ModelCard(
    name="mine.v1",
    class_names=("ant", "bee", "cat", "dog", "eel"),
    preprocessing=Preprocessing(image_size=64, mean=(0.1, 0.2, 0.3)),
    licence="MIT",
    metrics={"top1": 91.5},
)


@pytest.mark.parametrize("shape", [*CONFIGS, *ONLY_OURS])
def test_our_file_brings_everything_back(tmp_path: Path, shape: str) -> None:
    model = classifier((CONFIGS | ONLY_OURS)[shape])
    model.card = CARD

    checkpoint = weights.read(weights.save(model, tmp_path / "x.safetensors"))

    assert checkpoint.layout == "native"
    assert checkpoint.config == model.config
    assert checkpoint.card == CARD
    assert checkpoint.unsettled == {}
    assert all(torch.equal(checkpoint.state_dict[key], value) for key, value in model.state_dict().items())


def test_our_file_of_a_backbone(tmp_path: Path) -> None:
    backbone = FocalNetConfig.from_dict({**PLAIN, "out_indices": (1,)}).build()
    checkpoint = weights.read(weights.save(backbone, tmp_path / "x.safetensors"))
    assert checkpoint.config == backbone.config
    assert checkpoint.card.name == "x"
    assert checkpoint.num_classes == 0


@pytest.mark.parametrize("layout", ["microsoft", "timm", "huggingface"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_exported_files_come_back(tmp_path: Path, layout: str, suffix: str) -> None:
    model = classifier(LARGE)
    model.card = CARD
    ours = weights.read(weights.save(model, tmp_path / "ours.safetensors"))

    theirs = weights.read(weights.export(ours, tmp_path / "sub" / f"model{suffix}", layout), post_norm=True)

    assert theirs.layout == layout
    assert theirs.config == ours.config
    assert all(torch.equal(theirs.state_dict[key], value) for key, value in ours.state_dict.items())
    assert theirs.card.class_names == (CARD.class_names if layout == "huggingface" else ())


def test_transformers_opens_what_we_export(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = classifier({**LARGE, "post_norm_in_modulation": True})
    model.card = CARD
    ours = weights.read(weights.save(model, tmp_path / "ours.safetensors"))
    weights.export(ours, tmp_path / "hub" / "model.safetensors", "huggingface")

    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "hub").eval()

    assert theirs.config.id2label[3] == "dog"
    with torch.no_grad():
        torch.testing.assert_close(theirs(images(model)).logits, model(images(model)), rtol=1e-5, atol=1e-5)


def test_we_open_what_transformers_saves(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.FocalNetConfig(
        embed_dim=8,
        depths=[1, 1],
        focal_levels=[3, 2],
        focal_windows=[3, 5],
        hidden_sizes=[16, 16],
        use_conv_embed=True,
        use_post_layernorm=True,
        use_layerscale=True,
        layerscale_value=1e-2,
        normalize_modulator=True,
        num_labels=3,
        id2label={0: "ant", 1: "bee", 2: "cat"},
    )
    transformers.FocalNetForImageClassification(config).save_pretrained(tmp_path)

    checkpoint = weights.read(tmp_path)

    shape = checkpoint.backbone
    assert (shape.post_norm, shape.normalize_modulator, shape.layer_scale) == (True, True, 1e-2)
    assert checkpoint.card.class_names == ("ant", "bee", "cat")
    assert checkpoint.unused == ()


def test_the_description_of_a_timm_model_is_used(tmp_path: Path) -> None:
    ours = weights.read(weights.save(classifier(PLAIN), tmp_path / "ours.safetensors"))
    weights.export(ours, tmp_path / "hub" / "model.safetensors", "timm")
    description = {
        "architecture": "focalnet_of_mine",
        "num_classes": 5,
        "label_names": ["a", "b", "c", "d", "e"],
        "pretrained_cfg": {
            "input_size": [3, 96, 96],
            "crop_pct": 0.9,
            "interpolation": "bilinear",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.2, 0.2, 0.2],
        },
    }
    (tmp_path / "hub" / "config.json").write_text(json.dumps(description))

    card = weights.read(tmp_path / "hub").card

    assert card.class_names == ("a", "b", "c", "d", "e")
    assert card.preprocessing == Preprocessing(
        image_size=96, crop_pct=0.9, interpolation="bilinear", mean=(0.5,) * 3, std=(0.2,) * 3
    )


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"model_type": "focalnet", "id2label": {"x": 1}}', '{"model_type": "focalnet", "id2label": 3}']
)
def test_a_damaged_description_is_named(tmp_path: Path, text: str) -> None:
    ours = weights.read(weights.save(classifier(PLAIN), tmp_path / "ours.safetensors"))
    weights.export(ours, tmp_path / "hub" / "model.safetensors", "huggingface")
    (tmp_path / "hub" / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: the config\.json next to it is damaged"):
        weights.read(tmp_path / "hub")


def test_a_description_that_contradicts_the_tensors(tmp_path: Path) -> None:
    ours = weights.read(weights.save(classifier(PLAIN), tmp_path / "ours.safetensors"))
    weights.export(ours, tmp_path / "hub" / "model.safetensors", "huggingface")
    described = json.loads((tmp_path / "hub" / "config.json").read_text())
    (tmp_path / "hub" / "config.json").write_text(json.dumps({**described, "use_conv_embed": True}))
    with pytest.raises(CheckpointError, match="described with overlapped=True, but has overlapped=False"):
        weights.read(tmp_path / "hub")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"depths": [10**6, 2]}, "described with depths"),
        ({"embed_dim": 10**12}, "described with embed_dim"),
        ({"embed_dim": "8"}, "header is damaged"),
        ({"mlp_ratio": None}, "header is damaged"),
        ({"layer_scale": 1e-4}, "described with layer_scale"),
        ({"colour": 1}, 'has no option "colour"'),
        ({"focal_levels": [2]}, "focal_levels"),
    ],
)
def test_our_description_must_agree_with_the_tensors(tmp_path: Path, change: dict[str, object], says: str) -> None:
    model = classifier(PLAIN)
    config = model.config.to_dict()
    config["backbone"] |= change
    header = {"kind": "classifier", "config": config, "card": dataclasses.asdict(CARD)}
    save_file(model.state_dict(), tmp_path / "x.safetensors", metadata={HEADER: json.dumps(header)})
    with pytest.raises(CheckpointError, match=rf"x\.safetensors: .*{says}"):
        weights.read(tmp_path / "x.safetensors")


@pytest.mark.parametrize("header", ["{", "[]", "{}", '{"kind": "classifier", "config": 3}'])
def test_a_damaged_description_of_ours(tmp_path: Path, header: str) -> None:
    save_file(classifier(PLAIN).state_dict(), tmp_path / "x.safetensors", metadata={HEADER: header})
    with pytest.raises(CheckpointError, match=r"x\.safetensors: its header is damaged"):
        weights.read(tmp_path / "x.safetensors")


def test_a_network_of_another_version(tmp_path: Path) -> None:
    save_file(classifier(PLAIN).state_dict(), tmp_path / "x.safetensors", metadata={HEADER: '{"kind": "clasifier"}'})
    with pytest.raises(CheckpointError, match=r'holds a "clasifier".*did you mean "classifier".*update focalnet'):
        weights.read(tmp_path / "x.safetensors")


def test_a_description_with_other_classes(tmp_path: Path) -> None:
    model = classifier(PLAIN)
    config = {**model.config.to_dict(), "num_classes": 10**18}
    header = {"kind": "classifier", "config": config, "card": dataclasses.asdict(CARD)}
    save_file(model.state_dict(), tmp_path / "x.safetensors", metadata={HEADER: json.dumps(header)})
    with pytest.raises(CheckpointError, match="described with num_classes="):
        weights.read(tmp_path / "x.safetensors")


def test_a_native_file_of_another_architecture(tmp_path: Path) -> None:
    path = weights.save(classifier(PLAIN), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"x\.safetensors: it is not a focalnet_tiny_srf: it has embed_dim=8"):
        weights.read(path, architecture="focalnet_tiny_srf")


def test_class_names_that_do_not_count_up_are_left_out(tmp_path: Path) -> None:
    ours = weights.read(weights.save(classifier(PLAIN), tmp_path / "ours.safetensors"))
    weights.export(ours, tmp_path / "hub" / "model.safetensors", "huggingface")
    described = json.loads((tmp_path / "hub" / "config.json").read_text())
    (tmp_path / "hub" / "config.json").write_text(json.dumps({**described, "id2label": {"0": "ant", "1": "bee"}}))
    assert weights.read(tmp_path / "hub").card.class_names == ()


def test_missing_and_unused_tensors_are_reported(tmp_path: Path) -> None:
    state_dict = classifier(PLAIN).state_dict()
    torch.save({**state_dict, "ema_decay": torch.tensor(0.99)}, tmp_path / "x.pth")
    checkpoint = weights.read(tmp_path / "x.pth", post_norm=False)
    assert checkpoint.unused == ("ema_decay",)
    assert str(checkpoint.report()) == (
        f"taken       {len(state_dict)} tensors\nunused      1\n  ema_decay\nmissing     0\nmismatched  0"
    )

    del state_dict["layers.1.blocks.0.mlp.fc2.bias"]
    torch.save(state_dict, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth: .*1 missing \(layers\.1\.blocks\.0\.mlp\.fc2\.bias\)"):
        weights.read(tmp_path / "x.pth", post_norm=False)


def test_a_tensor_of_another_shape_is_reported(tmp_path: Path) -> None:
    state_dict = classifier(PLAIN).state_dict()
    state_dict["norm.weight"] = torch.ones(3)
    torch.save(state_dict, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"1 of another shape \(norm\.weight: \(3,\) instead of \(16,\)\)"):
        weights.read(tmp_path / "x.pth", post_norm=False)


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    torch.save({"model": classifier(PLAIN).half().state_dict()}, tmp_path / "x.pth")
    checkpoint = weights.read(tmp_path / "x.pth", post_norm=False)
    assert {tensor.dtype for tensor in checkpoint.state_dict.values()} == {torch.float32}


def test_the_origin_of_a_conversion_is_kept(tmp_path: Path) -> None:
    torch.save({"model": classifier(PLAIN).state_dict()}, tmp_path / "theirs.pth")
    checkpoint = weights.read(tmp_path / "theirs.pth", post_norm=False)
    source = weights.read(weights.export(checkpoint, tmp_path / "ours.safetensors", "native")).card.source
    assert source is not None
    assert source.startswith("theirs.pth, sha256 ")


def test_a_backbone_has_no_foreign_layout(tmp_path: Path) -> None:
    checkpoint = weights.read(weights.save(FocalNetConfig.from_dict(PLAIN).build(), tmp_path / "x.safetensors"))
    with pytest.raises(CheckpointError, match="only a classifier has a timm layout"):
        weights.export(checkpoint, tmp_path / "y.pth", "timm")


def test_our_files_are_safetensors_only(tmp_path: Path) -> None:
    checkpoint = weights.read(weights.save(classifier(PLAIN), tmp_path / "x.safetensors"))
    with pytest.raises(CheckpointError, match=r"name it y\.safetensors"):
        weights.export(checkpoint, tmp_path / "y.pth", "native")


def test_an_official_file_gets_the_names_of_its_published_twin(tmp_path: Path) -> None:
    from focalnet.zoo import create_model

    torch.save({"model": create_model("focalnet_tiny_srf").state_dict()}, tmp_path / "focalnet_tiny_srf.pth")
    checkpoint = weights.read(tmp_path / "focalnet_tiny_srf.pth")
    assert checkpoint.architecture == "focalnet_tiny_srf"
    assert checkpoint.card.class_names[0] == "tench, Tinca tinca"


def test_safetensors_keeps_the_format_mark(tmp_path: Path) -> None:
    with safe_open(weights.save(classifier(PLAIN), tmp_path / "x.safetensors"), framework="pt") as file:
        assert file.metadata()["format"] == "pt"  # transformers and others insist on it


@pytest.mark.parametrize(("names", "ids"), [("abcd", ()), ("abcdef", ()), ("", (1, 2, 3, 4))])
def test_a_card_of_another_number_of_classes_is_neither_written_nor_read(
    tmp_path: Path, names: str, ids: tuple[int, ...]
) -> None:
    model = classifier(PLAIN)
    model.card = ModelCard(name="mine", class_names=tuple(names), category_ids=ids)
    given = f"the model has 5 classes, but its card has {len(names or ids)} "
    with pytest.raises(CheckpointError, match=rf"cannot write .*x\.safetensors: {given}.*set model\.card"):
        weights.save(model, tmp_path / "x.safetensors")
    header = {HEADER: describe(model.config, model.card)}
    save_file(model.state_dict(), tmp_path / "x.safetensors", metadata=header)
    with pytest.raises(CheckpointError, match=given):
        weights.read(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "head", [torch.nn.Linear(16, 7), torch.nn.Linear(16, 5, bias=False), torch.nn.Sequential(torch.nn.Linear(16, 5))]
)
def test_a_model_with_another_head_is_not_written(tmp_path: Path, head: torch.nn.Module) -> None:
    model = classifier(PLAIN)
    model.head = head
    with pytest.raises(CheckpointError, match=r"cannot write .*: the model was changed .*reset_classifier"):
        weights.save(model, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_names_of_another_head_are_not_given(tmp_path: Path) -> None:
    model = classifier(PLAIN)
    model.card = ModelCard(name="mine", class_names=tuple("abcde"))
    model.head = torch.nn.Linear(16, 7)
    with pytest.raises(ConfigError, match="the head has 7 outputs"):
        model.predict(images(model))


def test_what_half_precision_cannot_hold_is_not_written(tmp_path: Path) -> None:
    model = classifier(PLAIN)
    with torch.no_grad():
        model.head.weight[0, 0] = 1e6
    read = weights.read(weights.save(model, tmp_path / "x.safetensors"))
    with pytest.raises(
        CheckpointError, match=r"head\.weight, hold values beyond the range of float16; choose bfloat16"
    ):
        weights.export(read, tmp_path / "half.safetensors", "native", torch.float16)
    weights.export(read, tmp_path / "half.safetensors", "native", torch.bfloat16)


@pytest.mark.parametrize(
    ("name", "layout"), [("x.onnx", "timm"), ("x.pt2", "microsoft"), ("config.json", "huggingface")]
)
def test_names_of_other_files_are_refused(tmp_path: Path, name: str, layout: str) -> None:
    read = weights.read(weights.save(classifier(PLAIN), tmp_path / "x.safetensors"))
    with pytest.raises(CheckpointError, match=r"weights cannot have this name"):
        weights.export(read, tmp_path / name, layout)
    assert not (tmp_path / name).exists()


def test_a_default_device_does_not_change_what_is_read(tmp_path: Path) -> None:
    path = weights.save(classifier(PLAIN), tmp_path / "x.safetensors")
    with torch.device("meta"):
        assert weights.read(path).state_dict["head.weight"].device.type == "cpu"
