"""What a run on label maps computes and leaves behind."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms.v2 import functional as to_pixels

import focalnet
from focalnet import weights, zoo
from focalnet.card import ModelCard, Preprocessing
from focalnet.cli.main import main
from focalnet.cli.train import fit, validate
from focalnet.data import SemanticData
from focalnet.errors import ConfigError, DataError
from focalnet.metrics.semantic import SemanticEvaluator
from focalnet.results import SemanticMap
from focalnet.training import SemanticTask, engine, report
from focalnet.training.engine import Measurement
from focalnet.training.optimizer import ScheduleConfig
from focalnet.training.run_folder import RunFolder
from focalnet.training.tasks.semantic import padded
from tests.data.semantic import HEIGHT, NAMES, WIDTH, write_semantic
from tests.training.toy import assert_same_weights

RECIPE = "segmentation/camvid_nano"
NETWORK = {
    "depths": [1, 1, 1], "embed_dim": 8, "focal_levels": [1, 1, 1], "focal_windows": [3, 3, 3],
    "channels": 16, "auxiliary_channels": 8, "drop_path_rate": 0.2,
}  # fmt: skip
TOY: dict[str, Any] = {
    "model.options": NETWORK,
    "model.backbone_weights": None,
    "data.class_names": "classes.txt",
    "data.ignore_index": 255,
    "data.batch_size": 2,
    "data.val_batch_size": None,
    "data.num_workers": 0,
    "data.image_size": HEIGHT,
    "data.max_size": WIDTH,
    "data.augmentation.crop": [32, 36],
    "trainer.max_epochs": 2,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.precision": "32-true",
    "trainer.accelerator": "cpu",
}
MEASURING = {n: TOY[n] for n in TOY if n.startswith("data.") or n in ("trainer.precision", "trainer.accelerator")}
FIGURES = ("miou", "pixel_accuracy", "mean_accuracy")


@pytest.fixture(scope="module")
def masks(tmp_path_factory) -> Path:
    return write_semantic(tmp_path_factory.mktemp("masks"), images=4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, masks) -> Path:
    return fit(RECIPE, output=tmp_path_factory.mktemp("run") / "colours", **TOY, **{"data.root": str(masks)})


def test_a_run_leaves_everything_behind(finished):
    results = json.loads((finished / "results.json").read_text())
    assert results["images"] == 4
    assert all(0 <= results[name] <= 100 for name in FIGURES)
    rows = list(csv.DictReader((finished / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(float(row["train_loss"]) > 0 and float(row["miou"]) >= 0 for row in rows)


def test_the_weights_load_with_their_card_and_measure_the_same_again(finished, masks):
    model = focalnet.load(finished / "model.safetensors")
    results = json.loads((finished / "results.json").read_text())
    assert (model.card.name, model.card.class_names) == ("upernet_focalnet_nano.colours", NAMES)
    assert (model.card.preprocessing.image_size, model.card.preprocessing.max_size) == (HEIGHT, WIDTH)
    assert model.card.metrics == {"miou": round(results["miou"], 2)}
    again = validate(RECIPE, finished / "model.safetensors", **MEASURING, **{"data.root": str(masks)})
    assert {name: again[name] for name in FIGURES} == pytest.approx({name: results[name] for name in FIGURES}, abs=1e-4)


def test_an_interrupted_run_goes_on_to_the_same_weights(finished, masks, tmp_path, monkeypatch):
    step = SemanticTask.training_step

    def interrupted(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    options = {**TOY, "data.root": str(masks)}
    monkeypatch.setattr(SemanticTask, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(RECIPE, output=tmp_path / "run", **options)
    monkeypatch.setattr(SemanticTask, "training_step", step)
    assert_same_weights(fit(RECIPE, output=tmp_path / "run", **options), finished)


def test_colours_are_learned(masks, tmp_path):
    """The class is the brightest channel, so that a network that learns at all learns it."""
    easy = {
        "model.optimizer.lr": 1e-2,
        "model.ema_decay": None,
        "model.options": {**NETWORK, "drop_path_rate": 0.0, "dropout": 0.0},
        "data.augmentation": {"scale": [1.0, 1.0], "crop": [32, 32], "photometric": False},
        "trainer.max_epochs": 15,
        "trainer.check_val_every_n_epoch": 15,
    }
    folder = fit(RECIPE, output=tmp_path / "run", **{**TOY, **easy, "data.root": str(masks)})
    assert json.loads((folder / "results.json").read_text())["miou"] > 60


def test_the_backbone_starts_from_a_classifier(tmp_path):
    shape = {name: NETWORK[name] for name in ("depths", "embed_dim", "focal_levels", "focal_windows")}
    classifier = zoo.create_model("focalnet_nano", num_classes=7, **shape)
    file = weights.save(classifier, tmp_path / "classifier.safetensors")
    task = SemanticTask(architecture="upernet_focalnet_nano", backbone_weights=str(file), options=NETWORK)
    backbone, given = task.build(3).backbone.state_dict(), classifier.state_dict()
    same = [key for key in backbone if key in given]
    assert len(same) > 30
    assert all(torch.equal(backbone[key], given[key]) for key in same)


def test_validation_on_one_class_is_told(finished, masks, tmp_path, caplog):
    root = write_semantic(tmp_path, images=2)
    for path in (root / "masks/val").iterdir():
        Image.fromarray(np.full((HEIGHT, WIDTH), 1, np.uint8)).save(path)
    validate(RECIPE, finished / "model.safetensors", **MEASURING, **{"data.root": str(root)})
    assert 'is of class "green"' in caplog.text
    caplog.clear()
    validate(RECIPE, finished / "model.safetensors", **MEASURING, **{"data.root": str(masks)})
    assert "every labeled pixel" not in caplog.text


@pytest.mark.parametrize("more", [{}, {"data.ignore_index": 255, "data.label_map": "{255: 1}"}])
def test_objects_of_255_are_trained_as_a_second_class(tmp_path, more):
    root = write_semantic(tmp_path / "data", images=2)
    (root / "classes.txt").unlink()
    for path in root.glob("masks/*/*.png"):
        Image.fromarray(np.where(np.asarray(Image.open(path)) == 1, 255, 0).astype(np.uint8)).save(path)
    options = {**TOY, "data.class_names": None, "data.ignore_index": None, "trainer.max_epochs": 1, **more}
    run = fit(RECIPE, output=tmp_path / "run", **options, **{"data.root": str(root)})
    assert focalnet.load(run / "model.safetensors").card.class_names == ("class 0", "class 1")
    assert json.loads((run / "results.json").read_text())["miou"] < 100
    with pytest.raises(DataError, match=r"one class.*data\.label_map \{255: 1\}"):
        fit(RECIPE, output=tmp_path / "ignored", **{**options, "data.ignore_index": 255, "data.label_map": "{}"},
            **{"data.root": str(root)})  # fmt: skip


def test_sliding_windows_and_whole_pictures_are_options(finished, masks):
    file, options = finished / "model.safetensors", {**MEASURING, "data.root": str(masks)}
    whole = validate(RECIPE, file, **options)
    large = validate(RECIPE, file, **options, **{"model.slide": {"crop": 100, "stride": 50}})
    small = validate(RECIPE, file, **options, **{"model.slide": {"crop": 32, "stride": 16}})
    assert all(whole[name] == pytest.approx(large[name], abs=0.2) for name in FIGURES)  # one window sees all
    assert any(whole[name] != small[name] for name in FIGURES)


RATIOS = (0.75, 1.0, 1.5)


def test_several_sizes_mirrored_too_are_one_mean_of_probabilities(finished, masks):
    """Against the definition, picture by picture: every look resized to the picture, softmax, mean, best class."""
    model = focalnet.load(finished / "model.safetensors").eval()
    options = {**MEASURING, "data.root": str(masks), "data.ratios": list(RATIOS), "model.flip": True}
    found = validate(RECIPE, finished / "model.safetensors", **options)
    counts = torch.zeros(len(NAMES), len(NAMES))
    prepared = model.card.preprocessing
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (prepared.mean, prepared.std))
    for path in sorted((masks / "images" / "val").glob("*.png")):
        picture = to_pixels.pil_to_tensor(Image.open(path).convert("RGB"))
        labels = torch.from_numpy(np.array(Image.open(masks / "masks" / "val" / path.name))).long()
        total = torch.zeros(len(NAMES), *labels.shape)
        for ratio in RATIOS:
            short, long = int(HEIGHT * ratio), int(WIDTH * ratio)
            scale = min(short / min(labels.shape), long / max(labels.shape))
            seen = to_pixels.resize(picture, [int(side * scale + 0.5) for side in labels.shape], antialias=False)
            pixels = ((seen / 255 - mean) / std)[None]
            for mirrored in (False, True):
                with torch.no_grad():
                    scores = model.class_scores(pixels.flip(-1) if mirrored else pixels)
                scores = scores.flip(-1) if mirrored else scores
                total += F.interpolate(scores, labels.shape, mode="bilinear")[0].softmax(0)
        truth = labels != 255
        pairs = labels[truth] * len(NAMES) + total.argmax(0)[truth]
        counts += pairs.bincount(minlength=counts.numel()).view_as(counts)
    there = (counts.sum(0) + counts.sum(1)) > 0
    iou = counts.diag()[there] / (counts.sum(0) + counts.sum(1) - counts.diag())[there]
    assert found["miou"] == pytest.approx(float(100 * iou.mean()), abs=0.05)
    assert found["pixel_accuracy"] == pytest.approx(float(100 * counts.diag().sum() / counts.sum()), abs=0.05)


def test_several_pictures_at_once_are_looked_at_as_one_by_one(finished, masks):
    options = {**MEASURING, "data.root": str(masks), "data.ratios": list(RATIOS), "model.flip": True}
    one, two = (
        validate(RECIPE, finished / "model.safetensors", **{**options, "data.val_batch_size": size}) for size in (1, 2)
    )
    assert {name: two[name] for name in FIGURES} == pytest.approx({name: one[name] for name in FIGURES}, abs=0.5)


def test_batches_are_padded_to_what_the_network_needs():
    images = torch.rand(2, 3, 33, 64)
    larger = padded(images, 32)
    assert larger.shape == (2, 3, 64, 64)
    assert torch.equal(larger[:, :, :33], images)
    assert not larger[:, :, 33:].any()
    assert padded(images, 1).shape == images.shape


@pytest.mark.parametrize(
    ("options", "error", "expected"),
    [
        ({"model.architecture": "focalnet_nano"}, ConfigError, "no option|no segmenter|has no option"),
        ({"model.architecture": None, "model.weights": "x", "model.backbone_weights": "y"}, ConfigError, "goes with"),
        ({"model.slide": {"crop": 10, "stride": 20}}, ConfigError, "stride=20"),
        ({"model.schedule": {"kind": "poly", "power": 0.0}}, ConfigError, "power"),
        ({"data.augmentation.crop": [0, 1]}, ConfigError, "crop"),
        ({"data.ratios": []}, ConfigError, "ratios"),
        ({"data.ratios": [1.0, 0.0]}, ConfigError, "ratios"),
        ({"data.class_names": ["only"]}, DataError, "classes are 0 to 0"),
    ],
)
def test_wrong_options_are_refused(options, error, expected, masks, tmp_path):
    with pytest.raises(error, match=expected):
        fit(RECIPE, output=tmp_path / "run", **{**TOY, **options, "data.root": str(masks)})
    assert not (tmp_path / "run").exists()


def test_a_classifier_is_not_measured_on_pixels(masks):
    recipe = {
        "task": "semantic",
        "model": {"architecture": "upernet_focalnet_nano"},
        "data": {"root": str(masks)},
        "trainer": {"max_epochs": 1},
    }
    with pytest.raises(ConfigError, match="the weights are of a Classifier for classification"):
        engine.validate(recipe, zoo.create_model("focalnet_nano"))


def test_the_rate_is_that_of_mmseg():
    """Polynomial from the first update on, times the warm-up's share of the curve."""
    schedule = ScheduleConfig(kind="poly", min_lr=0.0, warmup_epochs=1.5, warmup_lr=6e-11)
    for update in (0, 1, 7, 14, 15, 16, 50, 99):
        curve = 6e-5 * (1 - update / 100)
        share = 1 - (1 - update / 15) * (1 - 1e-6) if update < 15 else 1
        assert schedule.learning_rate(update, 6e-5, 10, 10) == pytest.approx(curve * share, rel=1e-3, abs=1e-11)
    square = ScheduleConfig(kind="poly", power=2.0, min_lr=1e-5, warmup_epochs=0)
    assert square.learning_rate(50, 1e-3, 10, 10) == pytest.approx(1e-5 + 0.25 * (1e-3 - 1e-5))


# --- the report


class TwoExamples(SemanticEvaluator):
    num_examples = 2


def test_the_report_shows_figures_classes_confusions_best_and_worst(tmp_path, masks):
    data = SemanticData(masks, image_size=HEIGHT, max_size=WIDTH, num_workers=0)
    data.setup("validate")
    evaluator = TwoExamples(data, examples=True)
    for i, batch in enumerate(data.val_dataloader()):
        found = batch.targets[0].labels.clamp(max=2)
        found[: 8 * i] = 0  # each image worse than the one before
        evaluator.update([SemanticMap(found)], batch)
    best = [miou for miou, _ in evaluator._best]
    worst = [-rank for rank, _ in evaluator._worst]
    assert best[0] == 100.0
    assert best == sorted(best, reverse=True)
    assert worst == sorted(worst)
    assert max(worst) < min(best)
    metrics = evaluator.compute()
    results = {**Measurement(metrics, evaluator.images, 1.0).to_dict(), "epochs": 2, "seconds": 3.0}
    assert results["miou"] == pytest.approx(evaluator.metric.compute().miou, abs=1e-5)

    folder = RunFolder(tmp_path)
    folder.config.write_text("model: <x>")
    folder.versions.write_text("{}")
    card = ModelCard(name="nano", class_names=data.class_names, preprocessing=Preprocessing())
    rows = [{"epoch": e, "train_loss": 1.0 / e, "miou": 10.0 * e, "learning_rate": 1e-3} for e in (1, 2)]
    report.write_report(folder, card, results, rows, metrics, evaluator.report())
    page = folder.report.read_text()
    examples, charts = evaluator.best + evaluator.worst, [c for s in evaluator.report() for c in s.charts]
    assert len(re.findall(r'src="data:image/', page)) == 2 * len(examples) > 0  # targets beside predictions
    assert page.count("<svg ") == 3 + len(charts)  # after loss, metrics and learning rate
    for text in ("mIoU", "By class", "Confusion matrix", "Best images", "Worst images", "<td>green<td>"):
        assert text in page


def test_fit_and_validate_are_commands(masks, tmp_path, capsys):
    options = [f"--{name}={'null' if TOY[name] is None else TOY[name]}" for name in TOY if name != "model.options"]
    options += [f"--model.options={json.dumps(NETWORK)}", f"--data.root={masks}", "--trainer.max_epochs=1"]
    run = tmp_path / "run"
    assert main(["fit", RECIPE, "--output", str(run), *options]) == 0
    assert main(["validate", RECIPE, "--weights", str(run / "model.safetensors"), *options]) == 0
    assert re.search(r"^miou +\d+\.\d\d %$", capsys.readouterr().out, re.MULTILINE)
