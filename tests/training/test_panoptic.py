"""What a panoptic run computes and leaves behind, and Mask2Former as a finder of objects."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import focalnet
from focalnet import weights, zoo
from focalnet.card import ModelCard, Preprocessing
from focalnet.cli.train import fit, validate
from focalnet.errors import ConfigError
from focalnet.results import PanopticMap, Segment
from focalnet.samples import ObjectTarget
from focalnet.training import report
from focalnet.training.engine import Measurement
from focalnet.training.run_folder import RunFolder
from focalnet.training.tasks.panoptic import PanopticTask
from tests.data.coco import write_coco
from tests.data.panoptic import write_panoptic
from tests.training.toy import assert_same_weights

pytest.importorskip("pycocotools", reason="detection needs the extra dense")
pytest.importorskip("scipy", reason="matching needs the extra dense")
NETWORK = {
    "depths": [1, 1, 1], "embed_dim": 8, "focal_levels": [1, 1, 1], "focal_windows": [3, 3, 3], "drop_path_rate": 0.2,
    "channels": 16, "heads": 2, "norm_groups": 4, "num_queries": 8, "points": 2, "encoder_layers": 1,
    "encoder_hidden": 16, "decoder_layers": 1, "decoder_hidden": 16, "train_points": 64, "object_threshold": 0.0,
    "overlap_threshold": 0.0,
}  # fmt: skip
TRAINER = {
    "max_epochs": 2,
    "accelerator": "cpu",
    "logger": False,
    "gradient_clip_val": 0.01,
}
MODEL = {"architecture": "mask2former_focalnet_nano", "options": NETWORK, "ema_decay": 0.5}
IMAGES = {"batch_size": 2, "num_workers": 0, "image_size": 60, "max_size": 96}
PANOPTIC = {
    "task": "panoptic",
    "model": MODEL,
    "data": {**IMAGES, "augmentation": {"crop": 64, "scale": [0.5, 2.0]}},
    "trainer": TRAINER,
}
INSTANCE = {
    "task": "detection",
    "model": MODEL,
    "data": {**IMAGES, "augmentation": {"short_sides": [60], "crop_prob": 0.0}},
    "trainer": TRAINER,
}


def recipe(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "toy.yaml"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_panoptic(tmp_path_factory.mktemp("panoptic"), images=4)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return recipe(tmp_path_factory.mktemp("recipe"), PANOPTIC)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, root, file) -> Path:
    return fit(file, output=tmp_path_factory.mktemp("run") / "toy", **{"data.root": str(root)})


def test_a_run_leaves_everything_behind(finished):
    results = json.loads((finished / "results.json").read_text())
    assert results["images"] == 4
    figures = {"pq", "sq", "rq", "pq_things", "sq_things", "rq_things", "pq_stuff", "sq_stuff", "rq_stuff"}
    assert figures <= results.keys()
    assert all(0 <= results[name] <= 100 for name in figures)
    rows = list(csv.DictReader((finished / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(float(row["train_loss"]) > 0 and float(row["pq"]) >= 0 for row in rows)


def test_the_weights_know_what_is_a_thing_and_measure_the_same_again(finished, root, file):
    model = focalnet.load(finished / "model.safetensors")
    results = json.loads((finished / "results.json").read_text())
    assert (model.config.segments, model.config.num_classes, model.config.num_things) == ("panoptic", 4, 2)
    assert model.card.class_names == ("ant", "bee", "grass", "sky")
    assert model.card.metrics == {"pq": round(results["pq"], 2)}
    again = validate(file, finished / "model.safetensors", **{"data.root": str(root)})
    assert {k: v for k, v in again.items() if "q" in k} == pytest.approx(
        {k: v for k, v in results.items() if "q" in k}, abs=1e-4
    )


def test_an_interrupted_run_goes_on_to_the_same_weights(finished, root, file, tmp_path, monkeypatch):
    step = PanopticTask.training_step

    def interrupted(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(PanopticTask, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(file, output=tmp_path / "run", **{"data.root": str(root)})
    monkeypatch.setattr(PanopticTask, "training_step", step)
    assert_same_weights(fit(file, output=tmp_path / "run", **{"data.root": str(root)}), finished)


def test_other_networks_are_refused(root, tmp_path):
    file = recipe(tmp_path, {**PANOPTIC, "model": {"architecture": "upernet_focalnet_nano"}})
    with pytest.raises(ConfigError, match=r"upernet_focalnet_nano is not a network for panoptic; .* mask2former"):
        fit(file, output=tmp_path / "run", **{"data.root": str(root)})
    assert not (tmp_path / "run").exists()


# --- the report


def test_the_report_shows_figures_classes_best_and_worst(tmp_path, root):
    from focalnet.data import PanopticData
    from focalnet.metrics.panoptic import PanopticEvaluator

    data = PanopticData(root, **IMAGES)
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    found = []
    for i, truth in enumerate(batch.targets):
        labels = truth.labels.tolist()
        kept = truth.ids if i else truth.ids * (truth.ids < 3)  # the first image's objects are missed
        segments = [Segment(n + 1, label, label < 2, 0.9, int((kept == n + 1).sum())) for n, label in enumerate(labels)]
        found.append(PanopticMap(kept, tuple(segments[:2] if not i else segments)))
    evaluator = PanopticEvaluator(data, examples=True)
    evaluator.update(found, batch)
    assert [pq for pq, _ in evaluator._best] == [100, pytest.approx(100 * 2 / 3)]
    assert [len(example.target.segments) for example in evaluator.worst] == [4, 4]
    metrics = evaluator.compute()
    results = {**Measurement(metrics, evaluator.images, 1.0).to_dict(), "epochs": 2, "seconds": 3.0}
    assert results["pq_stuff"] == 100
    assert results["pq_things"] == pytest.approx(200 / 3)

    folder = RunFolder(tmp_path)
    folder.config.write_text("model: <x>")
    folder.versions.write_text("{}")
    rows = [{"epoch": e, "train_loss": 1.0 / e, "pq": 10.0 * e, "learning_rate": 1e-3} for e in (1, 2)]
    report.write_report(
        folder, ModelCard(name="toy", class_names=data.class_names), results, rows, metrics, evaluator.report()
    )
    page = folder.report.read_text()
    examples, charts = evaluator.best + evaluator.worst, [c for s in evaluator.report() for c in s.charts]
    assert len(re.findall(r'src="data:image/', page)) == 2 * len(examples) > 0  # targets beside predictions
    assert page.count("<svg ") == 3 + len(charts)  # after loss, metrics and learning rate
    for text in (
        "Panoptic quality",
        "By class",
        "Best images",
        "Worst images",
        "<td>stuff<td>100.00",
        "<td>sky<td>",
    ):
        assert text in page


# --- objects


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"), images=4)


def test_mask2former_finds_objects_measured_by_both(coco, tmp_path):
    file = recipe(tmp_path, INSTANCE)
    folder = fit(file, output=tmp_path / "run", **{"data.root": str(coco)})
    results = json.loads((folder / "results.json").read_text())
    assert {"box_ap", "mask_ap", "mask_ap50", "pq_things", "sq_things", "rq_things"} <= results.keys()
    assert "pq_things" in (folder / "metrics.csv").read_text()
    model = focalnet.load(folder / "model.safetensors")
    assert (model.config.segments, model.config.num_things) == ("instance", None)
    with pytest.raises(ConfigError, match=r"data\.masks must be true"):
        fit(file, output=tmp_path / "other", **{"data.root": str(coco), "data.masks": "false"})


def test_weights_give_what_the_task_asks_for(root, file, tmp_path):
    shape = {name: tuple(value) if isinstance(value, list) else value for name, value in NETWORK.items()}
    network = zoo.create_model("mask2former_focalnet_nano", num_classes=4, segments="instance", **shape)
    network.card = ModelCard(name="toy.test", preprocessing=Preprocessing(image_size=60, max_size=96))
    saved = weights.save(network, tmp_path / "finder.safetensors")
    assert "pq_stuff" in validate(file, saved, **{"data.root": str(root)})
    with pytest.raises(ConfigError, match="4 classes, the data has 2"):
        validate(recipe(tmp_path, INSTANCE), saved, **{"data.root": str(write_coco(tmp_path / "coco", images=2))})


def test_objects_that_were_cut_off_are_no_segments():
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, 0], masks[2, 1:] = True, True
    target = ObjectTarget(torch.zeros(3, 4), torch.tensor([4, 5, 6]), masks, torch.zeros(0, 4))
    segments = target.segments()
    assert segments.labels.tolist() == [4, 6]
    assert torch.equal(segments.masks, masks[[0, 2]])
