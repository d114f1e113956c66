"""Images with several classes, from a table to weights that never go through a softmax."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import focalnet
from focalnet import weights
from focalnet.cli.main import main
from focalnet.cli.train import fit, validate
from focalnet.errors import CheckpointError, ConfigError
from focalnet.results import Classification, MultiLabel
from focalnet.samples import Batch, ImageInfo
from focalnet.training import MultiLabelTask
from focalnet.training.tasks.classification import MixConfig
from focalnet.training.tasks.multilabel import mixed
from tests.training.toy import NETWORK, assert_same_weights, weights_of

RECIPE = "classification/multilabel"
TOY = {
    "model.architecture": "focalnet_nano",
    "model.weights": None,
    "model.options": NETWORK,
    "data.image_size": 16,
    "data.batch_size": 4,
    "data.num_workers": 0,
    "trainer.precision": "32-true",
    "trainer.accelerator": "cpu",
    "trainer.max_epochs": 1,
    "trainer.logger": "none",
}
MEASURED = {name: value for name, value in TOY.items() if name.startswith("data.")} | {"trainer.accelerator": "cpu"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("several")
    lines = ["image,labels"]
    for i in range(12):
        labels = [name for name, every in (("cat", 2), ("dog", 3)) if i % every == 0]
        Image.new("RGB", (20, 16), (255 * ("cat" in labels), 255 * ("dog" in labels), 20 * i)).save(root / f"{i}.png")
        lines.append(f"{i}.png,{'|'.join(labels)}")
    (root / "train.csv").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "several"
    return fit(RECIPE, output=folder, **{**TOY, "data.root": data, "model.class_weights": "balanced"})


def test_a_run_measures_average_precision_and_f1(run, data):
    results = json.loads((run / "results.json").read_text())
    assert {"map", "f1_micro", "f1_macro", "threshold", "per_class"} <= results.keys()
    assert [one["name"] for one in results["per_class"]] == ["cat", "dog"]
    again = validate(RECIPE, run / "model.safetensors", **{**MEASURED, "data.root": data})
    for name in ("map", "f1_micro", "f1_macro", "images", "per_class"):
        assert again[name] == results[name]


@pytest.mark.parametrize("file", ["model.safetensors", "last.ckpt"])
def test_its_weights_predict_several_classes(run, data, file):
    model = focalnet.load(run / file)
    assert model.config.multi_label
    assert model.config.output == "multilabel"
    result = focalnet.Predictor(model, min_score=0.0)(data / "0.png")
    assert isinstance(result, MultiLabel)
    assert result.logits is not None
    torch.testing.assert_close(torch.tensor(result.scores), result.logits.sigmoid().sort(descending=True).values)
    assert sorted(result.names) == ["cat", "dog"]
    assert len(focalnet.Predictor(model, min_score=1.0)(data / "0.png")) == 0
    default = focalnet.Predictor(model)(data / "0.png")
    assert default.names == tuple(name for _, name, score in result if score >= 0.5)
    prepared = torch.randn(2, 3, 16, 16)
    assert all(isinstance(one, MultiLabel) for one in model.predict(prepared))


def test_the_command_line_writes_all_labels(run, data, tmp_path, capsys):
    command = ["predict", str(data / "0.png"), "--model", str(run / "model.safetensors"), "--min-score", "0"]
    assert main([*command, "--out", str(tmp_path), "--table", str(tmp_path / "t.csv")]) == 0
    (entry,) = json.loads((tmp_path / "predictions.json").read_text())["predictions"]
    assert sorted(one["name"] for one in entry["labels"]) == ["cat", "dog"]
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 3
    capsys.readouterr()
    assert main([*command[:-1], "1"]) == 0
    assert "no class" in capsys.readouterr().out


def test_weights_of_one_kind_are_not_measured_as_the_other(run, data, tmp_path):
    digits = {"data.batch_size": 4, "trainer.accelerator": "cpu"}
    with pytest.raises(ConfigError, match="is for classification, the weights are of a Classifier for multilabel"):
        validate("classification/digits", run / "model.safetensors", **digits)
    single = focalnet.create_model("focalnet_nano", num_classes=2, **NETWORK)
    weights.save(single, tmp_path / "single.safetensors")
    with pytest.raises(ConfigError, match="the recipe is for multilabel"):
        validate(RECIPE, tmp_path / "single.safetensors", **{**MEASURED, "data.root": data})


def test_either_kind_can_be_finetuned_from_the_other(run):
    single = focalnet.load(run / "model.safetensors", task="classification")
    assert isinstance(single.predict(torch.zeros(1, 3, 16, 16))[0], Classification)
    assert focalnet.load(run / "model.safetensors", num_classes=5).config.multi_label
    assert focalnet.create_model("focalnet_nano", task="multilabel").config.output == "multilabel"


def test_files_say_so_and_layouts_that_cannot_refuse(run, tmp_path):
    checkpoint = weights.read(run / "model.safetensors")
    assert checkpoint.config.multi_label
    for layout in ("timm", "microsoft"):
        with pytest.raises(CheckpointError, match="cannot say that an image can have several classes"):
            weights.export(checkpoint, tmp_path / "file.safetensors", layout)
    assert not list(tmp_path.iterdir())
    model = focalnet.create_model("focalnet_tiny_srf", num_classes=2, task="multilabel", embed_dim=8)
    weights.save(model, tmp_path / "several.safetensors")
    checkpoint = weights.read(tmp_path / "several.safetensors")
    weights.export(checkpoint, tmp_path / "model.safetensors", "huggingface")
    assert json.loads((tmp_path / "config.json").read_text())["problem_type"] == "multi_label_classification"
    assert weights.read(tmp_path / "model.safetensors").config.multi_label
    single = focalnet.create_model("focalnet_nano", **NETWORK)
    assert "multi_label" not in single.config.to_dict()  # so that earlier versions read its file


def test_the_loss_is_binary_cross_entropy_with_weights_of_the_classes():
    torch.manual_seed(0)
    network = focalnet.create_model("focalnet_nano", num_classes=2, task="multilabel", **NETWORK)
    targets = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    batch = Batch(torch.randn(2, 3, 16, 16), [(16, 16)] * 2, targets, [ImageInfo("x", (16, 16))] * 2)
    p = network(batch.images).sigmoid()
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    torch.testing.assert_close(network.loss(batch)["loss"], expected)

    task = MultiLabelTask(architecture="focalnet_nano", class_weights="balanced")
    task._trainer = SimpleNamespace(datamodule=SimpleNamespace(label_counts=lambda: (torch.tensor([3.0, 1.0]), 4)))
    assert task._positive_weights().tolist() == pytest.approx([1 / 3, 3.0])
    task.network, task._weights, task.mixer = network, task._positive_weights(), None
    task.reseed, task.total = lambda _: None, lambda losses, images: losses["loss"]
    logits = network(batch.images)
    reference = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=torch.tensor([1 / 3, 3.0]))
    torch.testing.assert_close(task.training_step(batch, 0), reference)


@pytest.mark.parametrize(("counts", "given"), [([0.0, 1.0], "balanced"), ([4.0, 1.0], "balanced")])
def test_balanced_weights_need_images_with_and_without_each_class(counts, given):
    task = MultiLabelTask(architecture="focalnet_nano", class_weights=given)
    task._trainer = SimpleNamespace(datamodule=SimpleNamespace(label_counts=lambda: (torch.tensor(counts), 4)))
    with pytest.raises(ConfigError, match="needs training images with and without each class"):
        task._positive_weights()


@pytest.mark.parametrize("given", [[0.0, 1.0], [], [-1.0]])
def test_weights_that_cannot_be_are_refused(given):
    with pytest.raises(ConfigError, match="must be above 0"):
        MultiLabelTask(architecture="focalnet_nano", class_weights=given)


def test_as_many_weights_as_classes(data, tmp_path):
    options = {**TOY, "data.root": data, "model.class_weights": [1.0, 2.0, 3.0]}
    with pytest.raises(ConfigError, match="has 3 values, the data has 2 classes"):
        fit(RECIPE, output=tmp_path / "run", **options)


def test_an_explanation_shows_the_predicted_classes(run, data):
    explanation = focalnet.explain(focalnet.load(run / "model.safetensors"), data / "0.png", target="dog")
    assert isinstance(explanation.prediction, MultiLabel)
    assert explanation.heat is not None


def test_mixing_gives_targets_the_shares_of_the_images():
    """Every pixel of a mixed image and its targets say alike how much of which image is in it."""
    numbers = torch.eye(4)  # image i has the value i + 1 everywhere, and class i alone
    for options in ({"mixup": 5.0}, {"cutmix": 5.0}):
        np.random.seed(0)
        images = torch.arange(1.0, 5.0).view(4, 1, 1, 1).expand(4, 3, 32, 32).clone()
        images, targets = mixed(MixConfig(**options).build(7), images, numbers)
        assert targets.sum(1).tolist() == pytest.approx([1.0] * 4)
        assert 0.1 < targets[0, 0] < 0.9
        torch.testing.assert_close(images.mean((1, 2, 3)), targets @ torch.arange(1.0, 5.0))
    several = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    _, targets = mixed(MixConfig(mixup=1.0).build(3), torch.rand(2, 3, 8, 8), several)
    assert targets[:, 1].tolist() == pytest.approx([1.0, 1.0])  # both images have the class
    assert targets[:, 2].tolist() == [0.0, 0.0]
    assert targets[:, 0].sum() == pytest.approx(1.0)


def test_mixed_balanced_and_cached_runs_end_and_differ(run, data, tmp_path):
    options = {**TOY, "data.root": data, "model.class_weights": "balanced"}
    mixes = {"model.mix.mixup": 0.8, "model.mix.cutmix": 0.8}
    both = fit(RECIPE, output=tmp_path / "both", **options, **mixes, **{"data.sampling": "balanced"})
    assert not torch.equal(weights_of(both)["head.weight"], weights_of(run)["head.weight"])
    cached = fit(RECIPE, output=tmp_path / "cached", **options, **{"data.cache_in_memory": True})
    assert_same_weights(cached, run)
    with pytest.raises(ConfigError, match="need even batches, not of 3 images"):
        fit(RECIPE, output=tmp_path / "odd", **{**options, **mixes, "data.batch_size": 3})
