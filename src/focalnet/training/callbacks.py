"""What happens around training: progress, the table of metrics, the stop at a loss that is no number."""

from __future__ import annotations

import csv
import io
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from focalnet.errors import TrainingError
from focalnet.samples import Batch
from focalnet.training.run_folder import RunFolder, write

log = logging.getLogger(__name__)


#: The figures that say in a word how good a network is, and what to call them; all are percent.
HEADLINE = {"top1": "top-1", "box_ap": "box AP", "mask_ap": "mask AP", "miou": "mIoU", "pq": "PQ"}


def headline(metrics: Mapping[str, float]) -> list[str]:
    """``["top-1 88.20 %"]``, or ``["box AP 45.90 %", "mask AP 41.30 %"]``."""
    return [f"{title} {metrics[name]:.2f} %" for name, title in HEADLINE.items() if name in metrics]


class Progress(pl.Callback):
    """Logs a line an epoch (and one every ``every_s`` seconds within), and keeps the rows of ``metrics.csv``.

    The rows travel in the checkpoint, so that a resumed run's table has neither gaps nor doubles.
    """

    COLUMNS = (
        *("epoch", "updates", "learning_rate", "train_loss", "val_loss", "top1", "top5"),
        *("box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75"),
        *("miou", "pixel_accuracy", "mean_accuracy", "pq", "sq", "rq", "pq_things", "pq_stuff"),
        *("images_per_s", "seconds"),
    )

    def __init__(self, folder: RunFolder, every_s: float = 15.0) -> None:
        self.folder = folder
        self.every_s = every_s
        self.rows: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.monotonic()
        self.epochs_before = trainer.current_epoch
        self.seconds_before = self.rows[-1]["seconds"] if self.rows else 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epoch_started = self.last_line = time.monotonic()
        self.images = 0

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
        metrics = {name: float(f"{value:.7g}") for name, value in trainer.callback_metrics.items()}
        if (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1):
            metrics = {name: metrics[name] for name in ("train_loss", "learning_rate")}  # the rest is of an earlier one
        row = {
            "epoch": trainer.current_epoch + 1,
            "updates": trainer.global_step,
            **metrics,
            "images_per_s": round(self.speed, 1),
            "seconds": round(self.seconds_before + time.monotonic() - self.started, 1),
        }
        self.rows.append({name: row[name] for name in self.COLUMNS if name in row})
        figures = "  ".join([f"loss {row['train_loss']:.3f}", *headline(row)])
        self._line(trainer, figures, self.speed, trainer.current_epoch + 1)
        if trainer.is_global_zero:
            write(self.folder.metrics, self._table().encode())

    def _table(self) -> str:
        text = io.StringIO()
        columns = [column for column in self.COLUMNS if any(column in row for row in self.rows)]
        table = csv.DictWriter(text, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows)
        return text.getvalue()

    def _line(self, trainer: pl.Trainer, what: str, speed: float, epochs_done: float) -> None:
        if not trainer.is_global_zero:
            return
        elapsed = time.monotonic() - self.started
        left = elapsed / (epochs_done - self.epochs_before) * ((trainer.max_epochs or 0) - epochs_done)
        epoch = f"epoch {math.ceil(epochs_done)}/{trainer.max_epochs}"
        log.info("%s  %s  %s img/s  %s left", epoch, what, f"{speed:,.0f}", duration(left))


class StopAtNaN(pl.Callback):
    """Ends the run at a loss that is no finite number, before such weights could be saved.

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
        if (batch_idx + 1) % self.every and not trainer.is_last_batch:
            return
        broken = not torch.isfinite(outputs["loss"]).item()
        if trainer.strategy.reduce_boolean_decision(broken, all=False):
            raise TrainingError(
                f"the loss is no finite number any more in epoch {trainer.current_epoch + 1}, "
                f"batch {batch_idx + 1} or shortly before: lower --model.optimizer.lr"
            )


@dataclass(frozen=True)
class Judged:
    """A validation image ``(C, H, W)``, normalised, and what the network made of it: its class's score, in [0, 1]."""

    score: float
    label: int
    predicted: int
    image: Tensor


class Inspector(pl.Callback, ABC):
    """Gathers in ``trainer.validate`` what there is to say of all validation images, for results and report."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """The figures, most in percent, with ``images`` and ``images_per_s``."""


class Predictions(Inspector):
    """What the network said of every validation image.

    After ``trainer.validate``: ``labels`` ``(N,)`` and ``ranked`` ``(N, <= 5)``, the best classes first, of all
    processes; ``best`` and ``worst``, the surest right and the most wrong images of this process; ``seconds``.
    """

    def __init__(self, pictures: int = 12) -> None:
        self.pictures = pictures

    @property
    def right(self) -> Tensor:
        """``(N,)``: is the best class the right one?"""
        return self.ranked[:, 0] == self.labels

    def summary(self) -> dict[str, Any]:
        """``top1``, ``top5`` (where there are more than 5 classes) in percent, ``images``, ``images_per_s``."""
        hits = {"top1": self.right}
        if self.classes > 5:
            hits["top5"] = (self.ranked == self.labels[:, None]).any(1)
        images = len(self.labels)
        percent = {name: 100.0 * hit.double().mean().item() for name, hit in hits.items()}
        return {**percent, "images": images, "images_per_s": round(images / self.seconds, 1)}

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.parts: list[tuple[Tensor, Tensor]] = []
        self.best: list[Judged] = []
        self.worst: list[Judged] = []
        self.started = time.monotonic()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch[Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        labels = batch.targets
        self.classes = outputs.shape[1]
        scores = outputs.softmax(1).gather(1, labels[:, None])[:, 0].tolist()
        ranked = outputs.topk(min(5, self.classes)).indices.cpu()
        self.parts.append((labels.cpu(), ranked))
        order = sorted(range(len(scores)), key=scores.__getitem__)
        for i in {*order[: self.pictures], *order[-self.pictures :]}:
            judged = Judged(scores[i], int(labels[i]), int(ranked[i, 0]), batch.images[i].cpu())
            (self.best if judged.label == judged.predicted else self.worst).append(judged)
        self.best = sorted(self.best, key=lambda judged: -judged.score)[: self.pictures]
        self.worst = sorted(self.worst, key=lambda judged: judged.score)[: self.pictures]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds = time.monotonic() - self.started
        parts = [self.parts]
        if trainer.world_size > 1:
            parts = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(parts, self.parts)
        self.labels, self.ranked = (torch.cat([batch[i] for part in parts for batch in part]) for i in (0, 1))


def duration(seconds: float) -> str:
    """``"2 h 05 min"``, ``"3 min 20 s"``, ``"12 s"``."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
