"""``kill -9`` at random moments of writing: what was there before is there, or what was to come, whole."""

# ruff: noqa: E402 (what follows imports the extras)
from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

for package in ("lightning", "jsonargparse", "tensorboard", "pycocotools"):
    pytest.importorskip(package, reason="runs need the extra dense")

import torch
from PIL import Image

from focalnet import weights, zoo
from focalnet.card import ModelCard, Preprocessing
from focalnet.cli.main import main
from focalnet.metrics.base import Metric, Section, Table
from focalnet.training import report
from focalnet.training.checkpoints import AtomicCheckpoints, choose_resume_point
from focalnet.training.run_folder import RunFolder
from tests.attacks import killing
from tests.models import small

OPTIONS = "seed_everything: 0\n"
TASKS = ("classification", "detection")


def network(task: str) -> Any:
    """A tiny one with random weights and a card."""
    torch.manual_seed(0)
    shape = {"embed_dim": 8, "depths": (1, 1), "focal_levels": (1, 1), "focal_windows": (3, 3)}
    if task == "detection":
        found: Any = small.config("atss").build()
    else:
        found = zoo.create_model("focalnet_nano", num_classes=3, **shape)
    names = tuple(f"class {i}" for i in range(found.config.num_classes))
    found.card = ModelCard(name="toy.test", class_names=names, preprocessing=Preprocessing(image_size=32, max_size=64))
    return found


def state(task: str, epochs: int) -> dict[str, Any]:
    """What Lightning gives to be written after so many epochs."""
    model = network(task)
    optimizer = torch.optim.AdamW(model.parameters())
    progress = {"epoch_progress": {"current": {"ready": epochs, "processed": epochs}}}
    progress |= {"epoch_loop.batch_progress": {"current": {"processed": 3}}}
    return {
        "state_dict": {f"network.{name}": value + epochs for name, value in model.state_dict().items()},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"last_epoch": 3 * epochs}],
        "loops": {"fit_loop": progress},
        "callbacks": {},
    }


@pytest.fixture(scope="module")
def processes():
    return killing.server()


def killed(processes, action, *args, output: Path, moment: int) -> None:
    code, _ = killing.run(processes, action, *args, output=output, moment=moment)
    assert code == -signal.SIGKILL, output.read_text()


# --- checkpoints


def write_checkpoint(root: Path, task: str, epochs: int) -> None:
    folder = RunFolder(root)
    AtomicCheckpoints(folder, OPTIONS).save_checkpoint(state(task, epochs), folder.checkpoint)


@pytest.mark.parametrize("task", TASKS)
def test_within_a_checkpoint(processes, task, tmp_path, attacks):
    start = tmp_path / "start"
    for epochs in (1, 2):
        write_checkpoint(start, task, epochs)
    folder, output = tmp_path / "run", tmp_path / "output"
    shutil.copytree(start, folder)
    code, moments = killing.run(processes, write_checkpoint, folder, task, 3, output=output)
    assert code == 0, output.read_text()
    chosen = killing.ten_moments(moments, seed=1)
    for moment in chosen:
        shutil.rmtree(folder)
        shutil.copytree(start, folder)
        killed(processes, write_checkpoint, folder, task, 3, output=output, moment=moment)
        run = RunFolder(folder)
        for path in (run.checkpoint, run.previous):  # both, always
            point = choose_resume_point(path, path)
            assert point is not None
            found = torch.load(path, weights_only=True)
            expected = state(task, point.epochs)["state_dict"]
            assert all(torch.equal(found["state_dict"][name], value) for name, value in expected.items())
        last, previous = (choose_resume_point(path, path).epochs for path in (run.checkpoint, run.previous))
        assert (last, previous) in ((2, 1), (2, 2), (3, 2))
        run.tidy()
        assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "previous.ckpt"]
    attacks(len(chosen))


# --- the end of a run: weights, report, results


def finish(root: Path, task: str) -> None:
    folder, model = RunFolder(root), network(task)
    report._figure = lambda figure: "<p>a figure</p>"  # drawing takes longer than all the rest
    metrics = [Metric("top1", "top-1", 50.0, "%", headline=True, higher_is_better=True)]
    results = {"top1": 50.0, "images": 2, "images_per_s": 1.0, "epochs": 1, "seconds": 1.0}
    weights.save(model, folder.weights)
    rows = [{"epoch": 1, "train_loss": 1.0, "learning_rate": 0.1}]
    sections = [Section("Classes", tables=[Table([("a", "50 %")])])]
    report.write_report(folder, model.card, results, rows, metrics, sections)
    folder.write(folder.results, json.dumps(results).encode())


@pytest.mark.parametrize("task", TASKS)
def test_within_report_and_results(processes, task, tmp_path, attacks):
    start = RunFolder(tmp_path / "start")
    start.write(start.config, OPTIONS.encode())
    start.write(start.versions, b"{}")
    whole, output = tmp_path / "whole", tmp_path / "output"
    shutil.copytree(start.root, whole)
    code, moments = killing.run(processes, finish, whole, task, output=output)
    assert code == 0, output.read_text()
    chosen = killing.ten_moments(moments, seed=2)
    for moment in chosen:
        folder = RunFolder(tmp_path / f"killed-{moment}")
        shutil.copytree(start.root, folder.root)
        killed(processes, finish, folder.root, task, output=output, moment=moment)
        names = ("model.safetensors", "report.html", "results.json")
        there = [name for name in names if (folder.root / name).exists()]
        assert there == list(names[: len(there)])  # results come last: they say that all is there
        for name in there:
            assert (folder.root / name).read_bytes() == (whole / name).read_bytes()
    attacks(len(chosen))


# --- predictions


def predict(images: Path, out: Path, task: str) -> None:
    model = network(task)
    zoo.load = lambda name: model
    code = main(["predict", str(images), "--model", "toy", "--out", str(out), "--device", "cpu", "--min-score", "0"])
    assert code == 0


@pytest.mark.parametrize("task", TASKS)
def test_within_predictions(processes, task, tmp_path, attacks):
    images = tmp_path / "images"
    images.mkdir()
    for i in range(4):
        Image.new("RGB", (40, 32), (60 * i, 0, 255 - 60 * i)).save(images / f"{i}.png")
    whole, output = tmp_path / "whole" / "out", tmp_path / "output"
    code, moments = killing.run(processes, predict, images, whole, task, output=output)
    assert code == 0, output.read_text()
    expected = json.loads((whole / "predictions.json").read_text())["predictions"]
    chosen = killing.ten_moments(moments, seed=3)
    for moment in chosen:
        out = tmp_path / f"killed-{moment}" / "out"
        killed(processes, predict, images, out, task, output=output, moment=moment)
        said = [line for line in output.read_text().splitlines() if line.startswith(str(images))]
        kept = finished(out)
        assert [Path(entry["path"]) for entry in kept[: len(said)]] == [Path(line) for line in said]
        for entry, whole_entry in zip(kept, expected, strict=False):
            assert {**entry, "picture": ""} == {**whole_entry, "picture": ""}
            assert Path(entry["picture"]).read_bytes() == Path(whole_entry["picture"]).read_bytes()
    predict_again = chosen[len(chosen) // 2]
    out = tmp_path / f"killed-{predict_again}" / "out"
    assert killing.run(processes, predict, images, out, task, output=output)[0] == 0
    assert len(json.loads((out / "predictions.json").read_text())["predictions"]) == 4
    attacks(len(chosen) + 1)


def finished(out: Path) -> list[dict[str, Any]]:
    """The predictions that an ended process has left, from whichever file has them."""
    if (out / "predictions.json").exists():
        return list(json.loads((out / "predictions.json").read_text())["predictions"])
    if not (out / "predictions.jsonl").exists():
        return []
    header, *lines = (out / "predictions.jsonl").read_text().splitlines()
    assert json.loads(header)["model"] == "toy"
    return [json.loads(line)["prediction"] for line in lines]
