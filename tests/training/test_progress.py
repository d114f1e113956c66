"""What a person sees of a run: a bar where somebody looks, lines elsewhere, loggers by name."""

from __future__ import annotations

import io
import logging
import sys
from functools import partial

import pytest

from focalnet.cli.terminal import ToStderr
from focalnet.cli.train import fit
from focalnet.data.loader import Loader
from focalnet.errors import ConfigError, MissingDependency
from focalnet.training import loggers, progress
from focalnet.training.progress import shown_in_python
from focalnet.training.run_folder import RunFolder
from tests.training.toy import TOY

DIGITS = "classification/digits"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_and_a_line_an_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "tqdm", partial(progress.tqdm, mininterval=0))  # as toy batches come
    logger = logging.getLogger("focalnet")
    monkeypatch.setattr(logger, "propagate", False)  # pytest has handlers of its own
    monkeypatch.setattr(logger, "handlers", [])  # a command that ran in this process before has left one
    fit(DIGITS, output=tmp_path / "run", **TOY, **{"trainer.logger": "none"})
    shown = sys.stderr.getvalue()
    bars = [line for line in shown.split("\r") if line.startswith("epoch 2/2") and "| " in line]
    assert any("3/3" in line for line in bars)
    for part in ("img/s", " left", "GiB", "loss", "top-1"):
        assert part in bars[-1]
    assert "validation" in shown
    assert any(line.startswith("epoch 2/2  loss") for line in shown.replace("\r", "\n").split("\n"))
    assert not logger.handlers


def test_a_program_with_a_log_of_its_own_keeps_it(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    logger = logging.getLogger("focalnet")
    before = list(logger.handlers)
    with shown_in_python(ToStderr()):  # the root has pytest's handlers
        assert logger.handlers == before


def test_csv_by_name(tmp_path):
    run = fit(DIGITS, output=tmp_path / "run", **{**TOY, "trainer.max_epochs": 1}, **{"trainer.logger": "csv"})
    assert "val_loss" in (run / "csv/metrics.csv").read_text()
    assert not (run / "tensorboard").exists()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_named_before_anything_is_written(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependency, match=rf"focalnet\[{name}\]"):
        fit(DIGITS, output=tmp_path / "run", **TOY, **{"trainer.logger": name})
    assert not (tmp_path / "run").exists()


def test_a_logger_that_cannot_start_ends_in_one_line(tmp_path, monkeypatch):
    def refuse(*_args, **_options):
        raise RuntimeError("no server\nat all")

    monkeypatch.setattr(loggers, "WandbLogger", refuse)
    with pytest.raises(ConfigError, match=r"trainer.logger=wandb cannot start: no server at all"):
        loggers.build_logger("wandb", RunFolder(tmp_path))


def test_skipped_images_are_told_of_once(monkeypatch, caplog):
    loader, broken = object.__new__(Loader), ["1 broken images (a.png)"]
    loader.__dict__ |= {"_told": "", "_samples": type("Samples", (), {"broken": lambda self: broken[0]})()}
    for _ in range(3):
        loader._report()
    broken[0] = "2 broken images (a.png, b.png)"
    loader._report()
    assert [message.split(" broken")[0] for message in caplog.messages] == ["skipped 1", "skipped 2"]
