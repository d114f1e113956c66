"""What a detection run computes and leaves behind."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import focalnet
from focalnet import weights, zoo
from focalnet.card import ModelCard, Preprocessing
from focalnet.cli.main import main
from focalnet.cli.train import fit, validate
from focalnet.data.formats.coco import to_bitmaps
from focalnet.errors import CheckpointError, ConfigError, DataError, UnknownName
from focalnet.models import RCNN, MaskRCNNConfig
from focalnet.results import Detections
from focalnet.training import DetectionTask, engine, report
from focalnet.training.engine import Measurement
from focalnet.training.optimizer import ScheduleConfig
from focalnet.training.run_folder import RunFolder
from tests.data.coco import HEIGHT, WIDTH, annotation, content, write_coco, write_json
from tests.training.toy import assert_same_weights

pytest.importorskip("pycocotools", reason="detection needs the extra dense")
RECIPE = "detection/nuclei_nano"
NETWORK = {
    "depths": [1, 1, 1], "embed_dim": 8, "focal_levels": [1, 1, 1], "focal_windows": [3, 3, 3], "drop_path_rate": 0.2,
    "neck": {"channels": 16}, "stages": [{"fc_channels": 32}], "mask_channels": 8, "mask_convs": 1,
}  # fmt: skip
TOY: dict[str, Any] = {
    "model.options": NETWORK,
    "model.backbone_weights": None,
    "data.batch_size": 2,
    "data.num_workers": 0,
    "data.image_size": 60,
    "data.max_size": 96,
    "data.augmentation": {"short_sides": [60], "crop_prob": 0.5, "crop_short_sides": [60], "crop_sides": [40, 60]},
    "trainer.max_epochs": 2,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.precision": "32-true",
    "trainer.accelerator": "cpu",
}


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"), images=4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, coco) -> Path:
    return fit(RECIPE, output=tmp_path_factory.mktemp("run") / "nuclei", **TOY, **{"data.root": str(coco)})


def test_a_run_leaves_everything_behind(finished):
    results = json.loads((finished / "results.json").read_text())
    assert results["images"] == 4
    assert {"box_ap", "box_ap50", "mask_ap", "mask_ap75", "box_ar_100"} <= results.keys()
    assert all(0 <= results[name] <= 100 for name in results if "_a" in name)
    rows = list(csv.DictReader((finished / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(float(row["train_loss"]) > 0 and float(row["mask_ap"]) >= 0 for row in rows)


def test_the_weights_load_with_their_card_and_measure_the_same_again(finished, coco):
    model = focalnet.load(finished / "model.safetensors")
    results = json.loads((finished / "results.json").read_text())
    assert (model.card.name, model.card.class_names) == ("mask_rcnn_focalnet_nano.nuclei", ("ant", "bee"))
    assert (model.card.preprocessing.image_size, model.card.preprocessing.max_size) == (60, 96)
    assert model.card.metrics == {name: round(results[name], 2) for name in ("box_ap", "mask_ap")}
    options = {
        name: TOY[name] for name in ("data.batch_size", "data.num_workers", "trainer.accelerator", "trainer.precision")
    }
    again = validate(RECIPE, finished / "model.safetensors", **options, **{"data.root": str(coco)})
    assert {k: v for k, v in again.items() if "_a" in k} == pytest.approx(
        {k: results[k] for k in again if "_a" in k}, abs=1e-4
    )


def as_annotated(dataset: dict[str, Any], image: dict[str, Any]) -> Detections:
    """Detections that are the annotations of an image."""
    objects = [one for one in dataset["annotations"] if one["image_id"] == image["id"]]
    boxes = torch.tensor([one["bbox"] for one in objects]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    masks = to_bitmaps([one["segmentation"] for one in objects], HEIGHT, WIDTH)
    labels = torch.tensor([{3: 0, 7: 1}[one["category_id"]] for one in objects], dtype=torch.int64)
    return Detections(boxes, torch.ones(len(objects)), labels, masks=masks, size=(HEIGHT, WIDTH))


@pytest.mark.parametrize("ids", [range(1, 7), range(6), [None] * 6, [5] * 6, range(-3, 3), "abcdef"])
def test_what_is_found_as_it_is_measures_100_whatever_the_ids(finished, coco, tmp_path, monkeypatch, ids):
    dataset = content(4)
    for number, one in zip(ids, dataset["annotations"], strict=True):
        one["id"] = number
        if number is None:
            del one["id"]
    write_json(tmp_path / "annotations/instances_val.json", dataset)
    (tmp_path / "val").symlink_to(coco / "val")

    found = iter([as_annotated(dataset, image) for image in dataset["images"]])
    monkeypatch.setattr(RCNN, "predict", lambda self, images, sizes, originals: [next(found) for _ in sizes])
    options = {name: TOY[name] for name in ("data.num_workers", "trainer.accelerator", "trainer.precision")}
    measured = validate(RECIPE, finished / "model.safetensors", **options, **{"data.root": str(tmp_path)})
    assert [measured[name] for name in ("box_ap", "mask_ap", "box_ar_100", "pq_things")] == pytest.approx([100] * 4)


@pytest.mark.parametrize("ids", [[10, 20, 30], [7, 8, 9]])
def test_the_test_split_is_compared_with_its_own_annotations(finished, coco, tmp_path, monkeypatch, ids):
    """Also where its images have the ids of validation images."""
    dataset = content(3)
    numbers = {image["id"]: number for image, number in zip(dataset["images"], ids, strict=True)}
    for image in dataset["images"]:
        image["id"] = numbers[image["id"]]
    for one in dataset["annotations"]:
        one["image_id"] = numbers[one["image_id"]]
        one["category_id"] = {3: 7, 7: 3}[one["category_id"]]  # not as in validation
    write_json(tmp_path / "annotations/instances_test.json", dataset)
    (tmp_path / "test").symlink_to(coco / "val")
    (tmp_path / "val").symlink_to(coco / "val")
    write_json(tmp_path / "annotations/instances_val.json", content(4))
    found = iter([as_annotated(dataset, image) for image in dataset["images"]])
    monkeypatch.setattr(RCNN, "predict", lambda self, images, sizes, originals: [next(found) for _ in sizes])
    options = {name: TOY[name] for name in ("data.num_workers", "trainer.accelerator", "trainer.precision")}
    measured = validate(RECIPE, finished / "model.safetensors", split="test", **options, **{"data.root": str(tmp_path)})
    assert measured["images"] == 3
    assert [measured[name] for name in ("box_ap", "mask_ap", "pq_things")] == pytest.approx([100] * 3)


def test_an_interrupted_run_goes_on_to_the_same_weights(finished, coco, tmp_path, monkeypatch):
    step = DetectionTask.training_step

    def interrupted(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    options = {**TOY, "data.root": str(coco)}
    monkeypatch.setattr(DetectionTask, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(RECIPE, output=tmp_path / "run", **options)
    monkeypatch.setattr(DetectionTask, "training_step", step)
    assert_same_weights(fit(RECIPE, output=tmp_path / "run", **options), finished)


def test_the_backbone_starts_from_a_classifier(coco, tmp_path):
    shape = {name: NETWORK[name] for name in ("depths", "embed_dim", "focal_levels", "focal_windows")}
    classifier = zoo.create_model("focalnet_nano", num_classes=7, **shape)
    file = weights.save(classifier, tmp_path / "classifier.safetensors")
    options = {**NETWORK, "focal_windows": [5, 5, 5]}
    task = DetectionTask(architecture="mask_rcnn_focalnet_nano", backbone_weights=str(file), options=options)
    backbone = task.build(2).backbone.state_dict()
    given = classifier.state_dict()
    same = [key for key in backbone if key in given and backbone[key].shape == given[key].shape]
    assert len(same) > 30
    assert all(torch.equal(backbone[key], given[key]) for key in same)
    kernel = "layers.0.blocks.0.modulation.focal_layers.0.0.weight"
    assert torch.equal(backbone[kernel][:, :, 1:-1, 1:-1], given[kernel])


def test_own_weights_start_a_run_with_other_classes_and_nested_options(finished):
    nested = {name: NETWORK[name] for name in ("neck", "stages")}
    network = DetectionTask(weights=str(finished / "model.safetensors"), options=nested).build(3)
    assert (network.config.num_classes, network.config.neck.channels) == (3, NETWORK["neck"]["channels"])
    with pytest.raises(CheckpointError, match=r"neck=FPNConfig\(channels=16"):
        DetectionTask(weights=str(finished / "model.safetensors"), options={"neck": {"channels": 32}}).build(2)
    for wrong in ({"neck": {"chanels": 16}}, {"neck": 16}):
        with pytest.raises(ConfigError, match=r"channels|neck=16"):
            focalnet.load(finished / "model.safetensors", **wrong)


@pytest.mark.parametrize("start", ["architecture", "weights"])
def test_a_network_that_can_leave_out_masks_does_so_where_there_are_none(finished, caplog, start):
    given = {"weights": str(finished / "model.safetensors"), "architecture": "mask_rcnn_focalnet_nano"}[start]
    task = DetectionTask(**{start: given}, options=NETWORK if start == "architecture" else None)
    boxes_only = SimpleNamespace(masks=False, num_classes=2)
    task._trainer = SimpleNamespace(training=True, datamodule=boxes_only)
    task.configure_model()
    assert not task.network.config.masks
    assert "trained without masks" in caplog.text
    asked = DetectionTask(architecture="mask_rcnn_focalnet_nano", options={**NETWORK, "masks": True})
    asked._trainer = task._trainer
    with pytest.raises(ConfigError, match=r"data\.masks"):
        asked.configure_model()


@pytest.mark.parametrize(
    ("options", "error", "expected"),
    [
        ({"model.architecture": "focalnet_nano"}, ConfigError, "no option|no detector|has no option"),
        ({"model.architecture": None, "model.weights": "x", "model.backbone_weights": "y"}, ConfigError, "goes with"),
        ({"model.architecture": "mask_rcnn_focalnet_nani"}, UnknownName, "mask_rcnn_focalnet_nano"),
        ({"model.options.max_per_imag": 1}, ConfigError, "max_per_image"),
        ({"model.schedule": {"kind": "cosine", "steps": [1, 2]}}, ConfigError, "schedule.steps"),
        ({"task": "detecton"}, UnknownName, 'did you mean "detection"'),
        ({"data.augmentation.flip": 3}, ConfigError, "flip"),
    ],
)
def test_wrong_options_are_refused(options, error, expected, coco, tmp_path):
    with pytest.raises(error, match=expected):
        fit(RECIPE, output=tmp_path / "run", **{**TOY, **options, "data.root": str(coco)})
    assert not (tmp_path / "run").exists()


def test_wrong_data_is_told_before_training_starts(tmp_path):
    root = write_coco(tmp_path / "data")
    dataset = content()
    dataset["annotations"].append(annotation(77, 10, 3, [5, 5, 0, 3]))
    write_json(root / "annotations/instances_train.json", dataset)
    with pytest.raises(DataError, match=r"image 10 \(01.png\), annotation 77: its box .* has no size"):
        fit(RECIPE, output=tmp_path / "run", **TOY, **{"data.root": str(root)})
    assert not (tmp_path / "run").exists()


def test_a_classifier_is_not_measured_on_boxes(coco):
    model = zoo.create_model("focalnet_nano")
    model_options, trainer = {"architecture": "mask_rcnn_focalnet_nano"}, {"max_epochs": 1}
    recipe = {"task": "detection", "model": model_options, "data": {"root": str(coco)}, "trainer": trainer}
    with pytest.raises(ConfigError, match="the weights are of a Classifier for classification"):
        engine.validate(recipe, model)


def test_the_steps_of_the_rate_are_where_the_recipe_says():
    schedule = ScheduleConfig(kind="step", steps=(9, 11), warmup_epochs=0.5, warmup_lr=1e-7)
    rates = [schedule.learning_rate(update, 1e-4, 12, 10) for update in (0, 4, 5, 89, 90, 109, 110, 119)]
    assert rates == pytest.approx([1e-7, 1e-7 + 0.8 * (1e-4 - 1e-7), 1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6])


# --- the report


def test_the_report_shows_figures_curves_confusions_hits_and_misses(tmp_path, coco, finished):
    from focalnet.data import DetectionData
    from focalnet.metrics.coco import CocoEvaluator

    data = DetectionData(coco, image_size=60, max_size=96, batch_size=4, num_workers=0)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    found = []
    for i, target in enumerate(batch.targets):
        boxes = target.boxes if i else torch.zeros(0, 4)  # the first image's objects are missed
        masks = torch.zeros(len(boxes), 60, 80, dtype=torch.bool)
        found.append(
            Detections(boxes, torch.full((len(boxes),), 0.9), target.labels[: len(boxes)], masks=masks, size=(60, 80))
        )
    evaluator = CocoEvaluator(data, examples=True)
    evaluator.update(found, batch)
    assert evaluator.confusion.matrix.tolist() == [[2, 0, 1], [0, 2, 1], [0, 0, 0]]
    assert [mistakes for mistakes, _ in evaluator._worst] == [2]
    assert len(evaluator.best) == 2
    metrics = evaluator.compute()
    results = {**Measurement(metrics, evaluator.images, 1.0).to_dict(), "epochs": 2, "seconds": 3.0}
    assert results["box_ap50"] == pytest.approx(66.34, abs=0.5)

    folder = RunFolder(tmp_path)
    folder.config.write_text("model: <x>")
    folder.versions.write_text("{}")
    card = ModelCard(name="nano", class_names=data.class_names, preprocessing=Preprocessing())
    rows = [{"epoch": e, "train_loss": 1.0 / e, "box_ap": 10.0 * e, "learning_rate": 1e-3} for e in (1, 2)]
    report.write_report(folder, card, results, rows, metrics, evaluator.report())
    page = folder.report.read_text()
    examples, charts = evaluator.best + evaluator.worst, [c for s in evaluator.report() for c in s.charts]
    assert len(re.findall(r'src="data:image/', page)) == 2 * len(examples) > 0  # targets beside predictions
    assert page.count("<svg ") == 3 + len(charts)  # after loss, metrics and learning rate
    for text in (
        "Precision-recall curves, box",
        "By class, box",
        "Confusion matrix",
        "Most mistakes",
        "AR with 100 detections per image",
        "<td>ant<td>",
    ):
        assert text in page


# --- check-data


def test_check_data_names_every_problem_and_ends_in_exit_code_2(tmp_path, capsys):
    root = write_coco(tmp_path)
    assert main(["check-data", str(root), "--masks", "--decode"]) == 0
    assert "6 images; 5 ant, 5 bee" in capsys.readouterr().err
    dataset = content()
    dataset["annotations"] += [annotation(77, 10, 3, [5, 5, 0, 3]), annotation(78, 20, 5, [5, 5, 3, 3])]
    write_json(root / "annotations/instances_train.json", dataset)
    (root / "val/03.png").unlink()
    (root / "train/04.png").write_bytes(b"")
    assert main(["check-data", str(root), "--decode"]) == 2
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert len(lines) == 4
    assert all("instances_" in line for line in lines)
    for expected in ("annotation 77", "annotation 78", "04.png", "03.png"):
        assert sum(expected in line for line in lines) == 1
    assert printed.err.splitlines()[-1].endswith("4 problems, listed above")
    assert main(["check-data", str(root / "annotations/instances_val.json")]) == 2
    assert main(["check-data", str(tmp_path / "nowhere")]) == 2
    (root / "annotations/instances_train.json").write_text("{")
    assert main(["check-data", str(root)]) == 2
    assert "is not JSON" in capsys.readouterr().err


# --- predict


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    torch.manual_seed(0)
    shape = {
        **NETWORK,
        "depths": (1, 1, 1),
        "focal_levels": (1, 1, 1),
        "focal_windows": (3, 3, 3),
        "out_indices": (1, 2),
    }
    network = zoo.create_model("mask_rcnn_focalnet_nano", num_classes=2, **shape, max_per_image=6)
    preprocessing = Preprocessing(image_size=60, max_size=96)
    network.card = ModelCard(name="nano.test", class_names=("ant", "bee"), preprocessing=preprocessing)
    assert isinstance(network.config, MaskRCNNConfig)
    return str(weights.save(network, tmp_path_factory.mktemp("model") / "model.safetensors"))


@pytest.mark.parametrize("options", [[], ["--flip", "--short-side", "48", "--short-side", "60"], ["--tile", "40"]])
def test_predict_draws_objects_and_writes_cocos_results(options, model, coco, tmp_path, capsys):
    from pycocotools import mask

    out, file = tmp_path / "out", coco / "annotations/instances_val.json"
    arguments = ["predict", str(coco / "val"), "--model", model, "--min-score", "0", "--out", str(out)]
    assert main([*arguments, "--annotations", str(file), *options]) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        *(f"0{i}-prediction.png" for i in range(1, 5)), "detections.json", "predictions.json",
    ]  # fmt: skip
    found = json.loads((out / "detections.json").read_text())
    assert {one["image_id"] for one in found} <= {10, 20, 30, 40}
    assert {one["category_id"] for one in found} <= {3, 7}
    assert len(found) > 4
    for one in found:
        left, top, width, height = one["bbox"]
        assert min(left, top) >= -0.01
        assert left + width <= 80.01
        assert top + height <= 60.01
        assert one["segmentation"]["size"] == [60, 80]
        assert mask.area(one["segmentation"]) >= 0
    whole = json.loads((out / "predictions.json").read_text())
    assert whole["categories"] == [{"id": 3, "name": "ant"}, {"id": 7, "name": "bee"}]
    assert sum(len(p["objects"]) for p in whole["predictions"]) == len(found)
    assert capsys.readouterr().out.count("-prediction") == 0


def test_predict_refuses_what_does_not_go_together(model, coco, tmp_path, capsys):
    wrong = content()
    wrong["categories"][0]["name"] = "wasp"
    file = write_json(tmp_path / "wrong.json", wrong)
    pictures = [str(coco / "val"), "--model", model]
    (tmp_path / "clip.mp4").write_bytes(b"")
    for arguments, expected in (
        ([*pictures, "--annotations", str(file)], "wrong.json"),
        ([*pictures, "--tile", "8"], "tile"),
        ([*pictures, "--tile", "40", "--overlap", "1"], "overlap"),
        ([str(tmp_path / "clip.mp4"), "--model", model], "--out"),
    ):
        assert main(["predict", *arguments]) == 2
        assert expected in capsys.readouterr().err


def test_films_go_frame_by_frame(model, coco, tmp_path):
    cv2 = pytest.importorskip("cv2", reason="films need the extra video")
    from PIL import Image

    from focalnet.inference.video import frame_rate, frames, write_video

    pictures = [Image.open(path).convert("RGB").resize((96, 64)) for path in sorted((coco / "val").glob("*.png"))]
    film = write_video(pictures, tmp_path / "clip.mp4", 10.0)
    assert main(["predict", str(film), "--model", model, "--out", str(tmp_path / "out")]) == 0
    drawn = tmp_path / "out/clip-prediction.mp4"
    assert (len(list(frames(drawn))), frame_rate(drawn)) == (4, 10.0)
    assert cv2.__version__
