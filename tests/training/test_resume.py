"""A run that is killed goes on, and ends as if nothing had happened."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from focalnet.cli.train import fit
from focalnet.errors import ConfigError
from tests.training.toy import MIXED, assert_same_weights, run_in_child

DIGITS = "classification/digits"
EPOCHS = 8
LONG = {**MIXED, "model.ema_decay": 0.9, "trainer.max_epochs": EPOCHS, "data.num_workers": 1}


@pytest.fixture(scope="module")
def processes():
    """Starts processes quickly: what is slow to import is imported once, in the server they are forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.toy", "focalnet.training.engine", "sklearn.datasets"])
    return context


def killed(processes, folder: Path, when: Callable[[Path], bool]) -> None:
    """Starts the run and kills it (SIGKILL) as soon as ``when``, or lets it end if that never comes."""
    process = processes.Process(target=run_in_child, args=(DIGITS, folder, LONG))
    process.start()
    while process.is_alive() and not when(folder):
        time.sleep(1e-4)
    process.kill()
    process.join()


def complete(processes, folder: Path) -> Path:
    process = processes.Process(target=run_in_child, args=(DIGITS, folder, LONG))
    process.start()
    process.join()
    assert process.exitcode == 0
    return folder


def rows(folder: Path) -> list[str]:
    """Of metrics.csv, without the columns that are times."""
    return [line.rsplit(",", 2)[0] for line in (folder / "metrics.csv").read_text().splitlines()]


def after(epoch: int, delay_s: float = 0.0) -> Callable[[Path], bool]:
    """True some time after an epoch's row has been written."""

    def reached(folder: Path) -> bool:
        if not (folder / "metrics.csv").exists() or len(rows(folder)) <= epoch:
            return False
        time.sleep(delay_s)
        return True

    return reached


def while_writing(name: str) -> Callable[[Path], bool]:
    return lambda folder: any(name in file and file.endswith(".part") for file in listed(folder))


def listed(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.exists() else []


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_with_the_same_weights(processes, tmp_path):
    reference = complete(processes, tmp_path / "reference")
    folder = tmp_path / "killed"
    delays = random.Random(0)
    moments = [
        lambda folder: folder.exists(),  # before the first epoch
        after(1, delays.uniform(0, 0.3)),
        while_writing("last.ckpt"),
        after(3, delays.uniform(0, 0.3)),
        while_writing("metrics.csv"),
        while_writing("model.safetensors"),
        while_writing("results.json"),
    ]
    for moment in moments:
        killed(processes, folder, moment)
        if (folder / "last.ckpt").exists():  # never half written
            torch.load(folder / "last.ckpt", weights_only=True)
    complete(processes, folder)
    assert_same_weights(reference, folder)
    assert rows(folder) == rows(reference)
    assert len(rows(folder)) == EPOCHS + 1
    assert not [file for file in listed(folder) if file.endswith(".part")]


def test_an_interrupted_run_goes_on_from_its_last_epoch(tmp_path, monkeypatch, caplog):
    from focalnet.training import ClassificationTask

    whole = fit(DIGITS, output=tmp_path / "whole", **MIXED)
    step = ClassificationTask.training_step

    def interrupted(self, batch, batch_idx):
        if self.current_epoch == 1 and batch_idx == 1:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(DIGITS, output=tmp_path / "halves", **MIXED)
    caplog.clear()
    with caplog.at_level("INFO", "focalnet"):
        fit(DIGITS, output=tmp_path / "halves", **MIXED)
    assert "going on from" in caplog.text
    assert "epoch 2/2" in caplog.text
    assert "epoch 1/2" not in caplog.text
    assert_same_weights(whole, tmp_path / "halves")


def test_a_finished_run_is_left_alone_unless_forced(tmp_path, caplog):
    folder = fit(DIGITS, output=tmp_path / "run", **MIXED)
    before = (folder / "results.json").stat().st_mtime_ns
    with caplog.at_level("INFO", "focalnet"):
        fit(DIGITS, output=folder, **MIXED)
    assert "is finished; --force" in caplog.text
    assert (folder / "results.json").stat().st_mtime_ns == before
    fit(DIGITS, output=folder, force=True, **MIXED)
    assert (folder / "results.json").stat().st_mtime_ns > before


def test_another_runs_folder_is_refused_and_force_starts_afresh(tmp_path):
    other = {**MIXED, "trainer.max_epochs": 1}
    folder = fit(DIGITS, output=tmp_path / "run", **MIXED)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"trainer.max_epochs: 2, now 1.*--output.*--force"):
        fit(DIGITS, output=folder, **other)
    fit(DIGITS, output=folder, force=True, **other)
    assert len(rows(folder)) == 2
    assert (folder / "notes.txt").read_text() == "mine"
