"""However a run ends, it leaves weights, a report and results, and says why; what ended too early goes on later."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import focalnet
from focalnet.cli.main import main
from focalnet.cli.train import finish, fit, validate
from focalnet.errors import ConfigError, DataError
from focalnet.metrics.base import Metric
from focalnet.metrics.classification import ClassificationEvaluator
from focalnet.training import ClassificationTask
from focalnet.training.callbacks import Progress
from focalnet.training.optimizer import ScheduleConfig
from focalnet.training.run import Run
from focalnet.training.run_folder import RunFolder, seconds
from tests.training.toy import MIXED, TOY, assert_same_weights, weights_of

DIGITS = "classification/digits"
EARLY_STOPPING = {
    "class_path": "lightning.pytorch.callbacks.EarlyStopping",
    "init_args": {"monitor": "top1", "mode": "max", "patience": 1},
}


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def rows(folder: Path) -> list[list[str]]:
    """Of metrics.csv, without the columns that are times."""
    return [row[:-2] for row in csv.reader((folder / "metrics.csv").read_text().splitlines())]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fit(DIGITS, output=tmp_path_factory.mktemp("whole") / "run", **MIXED)


@pytest.fixture
def worsening(monkeypatch):
    """Top-1 falls from validation to validation, but for a high second one."""
    values = iter([50.0, 80.0, *range(70, 0, -1)])

    class Worsening(ClassificationEvaluator):
        def compute(self) -> list[Metric]:
            return [Metric("top1", "top-1", float(next(values)), headline=True), *super().compute()[1:]]

    monkeypatch.setattr(ClassificationTask, "evaluator_class", Worsening)


@pytest.mark.parametrize(
    ("options", "why", "epochs"),
    [
        ({"trainer.patience": 1, "trainer.max_epochs": 9}, "trainer.patience", 3),
        ({"trainer.callbacks": [EARLY_STOPPING], "trainer.max_epochs": 9}, "EarlyStopping", 3),
        ({"trainer.max_steps": 4}, "trainer.max_steps", 1),
        ({"trainer.max_time": "00:00:00:00"}, "trainer.max_time", 0),
        ({"trainer.fast_dev_run": True}, "complete", 1),
    ],
)
def test_a_run_that_ends_early_leaves_all_its_files(tmp_path, worsening, caplog, options, why, epochs):
    with caplog.at_level("INFO", "focalnet"):
        run = fit(DIGITS, output=tmp_path / "run", **{**TOY, **options})
    found = results(run)
    assert (found["ended"], found["epochs"]) == (why, epochs)
    assert why == "complete" or any(why in line and line.startswith("the run ends after") for line in caplog.messages)
    assert focalnet.load(run / "model.safetensors").card.name.endswith(".run")
    assert run.report.is_file()
    caplog.clear()
    with caplog.at_level("INFO", "focalnet"):
        fit(DIGITS, output=run, **{**TOY, **options})
    assert "is finished" in caplog.text


def test_the_best_weights_are_kept_and_both_are_reported(tmp_path, worsening, monkeypatch):
    kept: list[dict[str, torch.Tensor]] = []
    end = ClassificationTask.on_validation_epoch_end

    def remembers(self):
        end(self)
        kept.append({name: value.clone() for name, value in self.trained.state_dict().items()})

    monkeypatch.setattr(ClassificationTask, "on_validation_epoch_end", remembers)
    options = {**TOY, "trainer.max_epochs": 3, "model.ema_decay": 0.5}
    run = fit(DIGITS, output=tmp_path / "run", **options)
    assert all(torch.equal(kept[1][name], value) for name, value in weights_of(run).items())
    assert not all(torch.equal(kept[2][name], value) for name, value in weights_of(run).items())
    found = results(run)
    assert found["kept"] == {"weights": "best", "epoch": 2, "updates": 6}
    assert found["last"]["top1"] == 70.0
    last = fit(DIGITS, output=tmp_path / "last", **options, **{"model.keep": "last"})
    assert all(torch.equal(kept[2][name], value) for name, value in weights_of(last).items())
    assert results(last)["kept"] == {"weights": "last", "epoch": 3, "updates": 9}
    assert "last" not in results(last)


def test_a_run_out_of_time_goes_on_to_the_same_weights(tmp_path, monkeypatch, whole):
    elapsed = Progress.elapsed

    def slow(self):
        return elapsed(self) + (1000 if self.images >= 64 else 0)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "elapsed", slow)
        run = fit(DIGITS, output=tmp_path / "run", **MIXED, **{"trainer.max_time": "00:00:10:00"})
    assert results(run)["ended"] == "trainer.max_time"
    assert results(run)["epochs"] == 0
    with pytest.raises(ConfigError, match=r"trainer.max_time: 00:00:10:00, now 00:00:09:00"):
        fit(DIGITS, output=run, **MIXED, **{"trainer.max_time": "00:00:09:00"})
    fit(DIGITS, output=run, **MIXED, **{"trainer.max_time": "00:01:00:00"})
    assert results(run)["ended"] == "complete"
    assert_same_weights(whole, run)
    assert rows(run) == rows(whole)


@pytest.mark.parametrize("every", [{"trainer.checkpoint_updates": 1}, {"trainer.checkpoint_minutes": 1e-9}])
def test_checkpoints_within_an_epoch(tmp_path, monkeypatch, whole, every):
    step = ClassificationTask.training_step

    def interrupted(self, batch, batch_idx):
        if self.current_epoch == 1 and batch_idx == 2:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(DIGITS, output=tmp_path / "run", **MIXED, **every)
    assert "up to batch 2 of epoch 2" in RunFolder(tmp_path / "run").kept()
    made = finish(tmp_path / "run")
    assert results(made)["ended"] == "interrupted"
    assert (results(made)["epochs"], results(made)["kept"]["epoch"]) == (1, 1)
    assert 0 <= validate(DIGITS, made / "model.safetensors", **{"data.batch_size": 64})["top1"] <= 100
    fit(DIGITS, output=tmp_path / "run", **MIXED)  # without that option: it changes nothing of what is trained
    assert_same_weights(whole, tmp_path / "run")
    assert rows(tmp_path / "run") == rows(whole)
    with pytest.raises(ConfigError, match="is finished"):
        finish(tmp_path / "run")


def test_a_finished_run_is_extended(tmp_path, caplog):
    run = fit(DIGITS, output=tmp_path / "run", **TOY)
    before = rows(run)
    with caplog.at_level("INFO", "focalnet"):
        fit(DIGITS, output=run, **{**TOY, "trainer.max_epochs": 3})
    assert "trainer.max_epochs: 2, now 3" in caplog.text
    after = rows(run)
    assert after[:3] == before
    assert len(after) == 4
    whole = fit(DIGITS, output=tmp_path / "whole", **{**TOY, "trainer.max_epochs": 3})
    rate = after[0].index("learning_rate")
    assert after[3][rate] == rows(whole)[3][rate]
    (run / "last.ckpt").unlink()
    (run / "previous.ckpt").unlink()
    with pytest.raises(ConfigError, match=r"last.ckpt is missing.*max_epochs: 3, now 4.*model.weights"):
        fit(DIGITS, output=run, **{**TOY, "trainer.max_epochs": 4})


def test_a_trial_is_written_over(tmp_path):
    fit(DIGITS, output=tmp_path / "run", **TOY, **{"trainer.fast_dev_run": 1})
    assert len(rows(tmp_path / "run")) == 2
    run = fit(DIGITS, output=tmp_path / "run", **{**TOY, "trainer.max_epochs": 1})
    assert results(run)["kept"]["updates"] == 3


def test_the_schedule_ends_with_the_last_update():
    schedule = ScheduleConfig(kind="linear", warmup_epochs=1, min_lr=0.0)
    assert schedule.learning_rate(50, 1.0, 10, 10, max_updates=50) == 0.0
    assert schedule.learning_rate(30, 1.0, 10, 10, max_updates=50) == pytest.approx(0.5)
    assert schedule.learning_rate(30, 1.0, 10, 10, max_updates=500) == schedule.learning_rate(30, 1.0, 10, 10)


@pytest.mark.parametrize(
    ("time", "expected"), [("01:00:00:01", 86401), ({"hours": 2}, 7200), ("00:00:30", None), ("soon", None), (5, None)]
)
def test_times(time, expected):
    if expected is None:
        with pytest.raises(ConfigError, match="max_time"):
            seconds(time)
    else:
        assert seconds(time) == expected


def test_a_test_split_is_measured_once_with_the_kept_weights(tmp_path, capsys):
    for split, shades in (("train", 16), ("val", 4), ("test", 6)):
        for name, shift in (("dark", 0), ("light", 128)):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(shades):
                Image.new("RGB", (8, 8), (shift + i, shift, shift)).save(tmp_path / "data" / split / name / f"{i}.png")
    options = {**TOY, "data.format": "auto", "data.val_split": None, "data.root": str(tmp_path / "data")}
    options |= {"data.batch_size": 8, "trainer.limit_val_batches": 1.0, "data.num_workers": 0}
    run = fit(DIGITS, output=tmp_path / "run", **options)
    measured = results(run)["test"]
    assert measured["images"] == 12
    assert results(run)["images"] == 8
    assert validate(run / "config.yaml", run / "model.safetensors", split="test")["top1"] == measured["top1"]
    assert main(["test", str(run), "--out", str(tmp_path / "test.json")]) == 0
    assert f"{measured['top1']:.2f} %" in capsys.readouterr().out
    assert json.loads((tmp_path / "test.json").read_text())["images"] == 12
    with pytest.raises(DataError, match="no test split"):
        validate(DIGITS, run / "model.safetensors", split="test")


def test_a_run_is_a_path_with_what_is_in_it(whole):
    assert isinstance(whole, Run)
    assert isinstance(whole, Path)
    assert whole == Path(str(whole))
    assert whole.metrics == results(Path(whole))
    assert whole.model.num_classes == 10
    result = whole.predict(Image.new("RGB", (8, 8)))
    assert len(result.scores) == 5
    assert f"<td>{whole.metrics['top1']}</td>" in whole._repr_html_()
    with pytest.raises(ConfigError, match="focalnet finish"):
        _ = Run("nowhere").metrics
