"""Runs of a second, in processes of their own, to which something happens at a chosen place."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from focalnet.cli.train import fit
from focalnet.errors import FocalNetError
from focalnet.training import finishing
from focalnet.training.tasks.base import Task
from tests.training.toy import MIXED

#: Six batches an epoch, two for each update, so that gradients may be pending.
OPTIONS: dict[str, Any] = {
    **MIXED,
    "model.ema_decay": 0.9,
    "trainer.limit_train_batches": 6,
    "trainer.accumulate_grad_batches": 2,
    "trainer.max_epochs": 3,
}


def train(root: Path, options: dict[str, Any], place: str = "", event: str = "", recipe: str = "") -> None:
    """Trains; ends as the command line does.

    Args:
        root: the folder of the run.
        options: of the run.
        place: ``"1.2"``, batch 2 of epoch 1, or ``"validation 1"``, ``"end"``.
        event: what happens there: the name of a signal, or of a function of this file.
        recipe: its path; default: handwritten digits.
    """
    finishing.write_report = lambda folder, *_: folder.write(folder.report, b"not drawn")
    happened = False

    def at(now: str) -> None:
        nonlocal happened
        if now == place and not happened:
            happened = True
            EVENTS.get(event, lambda root: os.kill(os.getpid(), getattr(signal, event)))(root)

    def training(task: Any, batch: Any, batch_idx: int, step: Any) -> Any:
        at(f"{task.current_epoch}.{batch_idx}")
        return step(task, batch, batch_idx)

    def validation(task: Any, batch: Any, batch_idx: int, step: Any) -> Any:
        at(f"validation {task.current_epoch}" if task.trainer.state.fn == "fit" else "end")
        return step(task, batch, batch_idx)

    tasks = Task.__subclasses__()
    for task in [Task, *tasks, *(task for base in tasks for task in base.__subclasses__())]:
        for name, wrapped in (("training_step", training), ("validation_step", validation)):
            if name in vars(task):
                step = vars(task)[name]
                setattr(task, name, lambda self, batch, i, step=step, wrapped=wrapped: wrapped(self, batch, i, step))
    try:
        fit(recipe or "classification/digits", output=root, **options)
    except FocalNetError as error:
        print(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def remove(root: Path) -> None:
    """As someone who makes room."""
    shutil.rmtree(root)


def rename(root: Path) -> None:
    """As someone who tidies."""
    root.rename(root.with_name("renamed"))


def replace(root: Path) -> None:
    """By a file."""
    shutil.rmtree(root)
    root.write_text("mine")


def wait(root: Path) -> None:
    """For the end."""
    (root.parent / "waiting").touch()
    time.sleep(600)


def everyone(root: Path) -> None:
    """A scheduler signals every process of a job, loader workers included."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    os.killpg(os.getpgid(0), signal.SIGTERM)
    time.sleep(0.5)


EVENTS = {function.__name__: function for function in (remove, rename, replace, wait, everyone)}
