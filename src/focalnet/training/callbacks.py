"""What happens around training: progress, the table of metrics, the stop at a loss that is no number."""

from __future__ import annotations

import csv
import ctypes
import io
import logging
import math
import os
import time
from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import torch

from focalnet.errors import TrainingError
from focalnet.metrics.base import Metric
from focalnet.samples import Batch
from focalnet.training.run_folder import RunFolder
from focalnet.training.tasks.base import Task

log = logging.getLogger(__name__)


def headline(metrics: Iterable[Metric]) -> list[str]:
    """``["top-1 88.20 %"]``, or ``["box AP 45.90 %", "mask AP 41.30 %"]``."""
    return [f"{metric.title} {metric}" for metric in metrics if metric.headline]


class Progress(pl.Callback):
    """Logs a line an epoch (and one every ``every_s`` seconds within), and keeps the rows of ``metrics.csv``.

    The rows travel in the checkpoint, so that a resumed run's table has neither gaps nor doubles; of an epoch that was
    stopped within, what had been counted of it does.
    """

    FIRST = ("epoch", "updates", "learning_rate", "train_loss", "val_loss")
    LAST = ("images_per_s", "seconds")

    def __init__(self, folder: RunFolder, every_s: float = 15.0) -> None:
        self.folder = folder
        self.every_s = every_s
        self.rows: list[dict[str, float]] = []
        self.within_epoch = False
        self.resumed: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        if not self.within_epoch:
            return {"rows": self.rows}
        seconds = {"epoch": time.monotonic() - self.epoch_started, "all": self.elapsed()}
        return {"rows": self.rows, "within": {"images": self.images, "speed": self.speed, "seconds": seconds}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]
        self.resumed = state_dict.get("within")

    def elapsed(self) -> float:
        """Seconds of training with its validations, over all starts of the run."""
        return self.seconds_before + time.monotonic() - self.started

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if (batches := trainer.accumulate_grad_batches) > 1 and trainer.is_global_zero:
            size = trainer.datamodule.batch_size  # type: ignore[attr-defined]
            log.info("an update sees %d images: %d batches of %d", batches * size, batches, size)
        self.started = time.monotonic()
        self.epochs_before: float = trainer.current_epoch
        self.seconds_before = self.rows[-1]["seconds"] if self.rows else 0.0
        if self.resumed is not None:  # no epoch starts
            self.images, self.speed = self.resumed["images"], self.resumed["speed"]
            self.seconds_before = self.resumed["seconds"]["all"]
            self.epoch_started = self.started - self.resumed["seconds"]["epoch"]
            self.last_line = self.started
            self.epochs_before += trainer.fit_loop.batch_idx / trainer.num_training_batches
            self.within_epoch = True

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epoch_started = self.last_line = time.monotonic()
        self.images, self.speed = 0, 0.0
        self.within_epoch = True

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch[Any],
        batch_idx: int,
    ) -> None:
        self.images += len(batch) * trainer.world_size
        now = time.monotonic()
        if trainer.is_last_batch:
            self.speed = self.images / (now - self.epoch_started)
        elif now - self.last_line > self.every_s:
            self.last_line = now
            speed = self.images / (now - self.epoch_started)
            done = (batch_idx + 1) / trainer.num_training_batches
            loss = outputs["loss"].item()
            self._line(trainer, f"{100 * done:3.0f} %  loss {loss:.3f}", speed, trainer.current_epoch + done)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        self.within_epoch = False
        logged = {name: float(f"{value:.7g}") for name, value in trainer.callback_metrics.items()}
        measured: list[Metric] = getattr(pl_module, "metrics", [])
        if (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1):
            measured = []  # what there is is of an earlier epoch
            logged = {}
        logged |= {name: float(f"{value:.7g}") for name, value in pl_module.epoch_figures().items()}
        row = {
            "epoch": trainer.current_epoch + 1,
            "updates": trainer.global_step,
            **logged,
            "images_per_s": round(self.speed, 1),
            "seconds": round(self.elapsed(), 1),
        }
        columns = (*self.FIRST, *(metric.name for metric in measured if metric.per_epoch), *self.LAST)
        self.rows.append({name: row[name] for name in columns if name in row})
        figures = "  ".join([f"loss {row['train_loss']:.3f}", *headline(measured)])
        self._line(trainer, figures, self.speed, trainer.current_epoch + 1)
        if trainer.is_global_zero:
            self.folder.write(self.folder.metrics, self._table().encode())

    def _table(self) -> str:
        text = io.StringIO()
        known = list(dict.fromkeys(name for row in self.rows for name in row))
        measured = [name for name in known if name not in self.FIRST + self.LAST]
        columns = [name for name in (*self.FIRST, *measured, *self.LAST) if name in known]
        table = csv.DictWriter(text, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows)
        return text.getvalue()

    def rate_and_time_left(self, trainer: pl.Trainer, batch_idx: int) -> tuple[float, float]:
        """Images a second in this epoch, and seconds to the last epoch, after a batch of it."""
        rate = self.images / (time.monotonic() - self.epoch_started)
        return rate, self._left(trainer, trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches)

    def _left(self, trainer: pl.Trainer, epochs_done: float) -> float:
        elapsed = time.monotonic() - self.started
        return elapsed / (epochs_done - self.epochs_before) * ((trainer.max_epochs or 0) - epochs_done)

    def _line(self, trainer: pl.Trainer, what: str, speed: float, epochs_done: float) -> None:
        if not trainer.is_global_zero:
            return
        left = self._left(trainer, epochs_done)
        epoch = f"epoch {math.ceil(epochs_done)}/{trainer.max_epochs}"
        log.info("%s  %s  %s img/s  %s left", epoch, what, f"{speed:,.0f}", duration(left))


class StopAtNaN(pl.Callback):
    """Ends the run at a loss that is NaN or infinite, before such weights could be saved.

    Looks every ``every`` batches and at the end of an epoch: each look waits for the device, and all
    processes take part in it.
    """

    def __init__(self, every: int = 50) -> None:
        self.every = every

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch[Any],
        batch_idx: int,
    ) -> None:
        if (batch_idx + 1) % self.every == 0 or trainer.is_last_batch:
            refuse_nan(trainer, outputs["loss"], batch_idx)


def refuse_nan(trainer: pl.Trainer, loss: torch.Tensor, batch_idx: int) -> None:
    """Raises TrainingError where the loss of any process is NaN or infinite; all processes take part."""
    if trainer.strategy.reduce_boolean_decision(not torch.isfinite(loss).item(), all=False):
        raise TrainingError(
            f"the loss became NaN or infinite in epoch {trainer.current_epoch + 1}, "
            f"batch {batch_idx + 1} or shortly before: lower --model.optimizer.lr"
        )


class ReturnFreedMemory(pl.Callback):
    """Gives memory that was freed back to the system, where the C library is glibc.

    With images of many sizes, tensors leave gaps between each other that glibc keeps: a process grows by gigabytes,
    and so do worker processes that start later. This is done every ``every_s`` seconds and at the end of an epoch,
    before validation starts its workers; a call takes about 0.15 s for 4 GB.
    """

    def __init__(self, every_s: float = 20.0) -> None:
        self.every_s = every_s
        self.last = time.monotonic()
        self.trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch[Any],
        batch_idx: int,
    ) -> None:
        if self.trim and (trainer.is_last_batch or time.monotonic() - self.last > self.every_s):
            self.trim(0)
            self.last = time.monotonic()


class Stopwatch(pl.Callback):
    """Takes the time of a validation or test, with all that is computed at its end."""

    seconds = 0.0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds = time.monotonic() - self.started

    on_test_start, on_test_end = on_validation_start, on_validation_end


def duration(seconds: float) -> str:
    """``"2 h 05 min"``, ``"3 min 20 s"``, ``"12 s"``."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
