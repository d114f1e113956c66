"""A learning-rate range test (Smith, arXiv 1506.01186): the rate rises with every update, and the loss is watched.

It trains a network of its own, of which nothing is kept: a run that follows has its own weights and random numbers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np

from focalnet.errors import ConfigError
from focalnet.files import atomic
from focalnet.kernels.memory import keep_freed_memory
from focalnet.training.failures import explained
from focalnet.training.options import OWN_TRAINER_OPTIONS, Options
from focalnet.training.tasks.base import Task

log = logging.getLogger(__name__)

SMOOTHING = 0.9  # of the losses: an exponential moving average, corrected for its start
DIVERGED = 4.0  # times the lowest smoothed loss, and the test ends
SKIPPED = 5  # updates at the start that suggest nothing: their average is of few losses
#: Standard deviations of the noise between updates by which the smoothed loss must fall, or nothing is suggested:
#: losses that are noise alone fall that far in fewer than one of a hundred tests of 30 to 300 updates.
FALL = 2.0


@dataclass(frozen=True)
class RangeTest:
    """What a range test has measured.

    Args:
        rates: values of ``model.optimizer.lr``, one for each update, ascending.
        losses: training loss of each update.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def smoothed(self) -> tuple[float, ...]:
        """The losses as an exponential moving average."""
        average, found = 0.0, []
        for number, loss in enumerate(self.losses, start=1):
            average = SMOOTHING * average + (1 - SMOOTHING) * loss
            found.append(average / (1 - SMOOTHING**number))
        return tuple(found)

    @property
    def suggestion(self) -> float | None:
        """The rate at which the smoothed loss falls most steeply over the logarithm of the rate; None if it does not.

        It is looked for up to the lowest loss, behind which the rate is too high.
        """
        losses = np.array(self.smoothed)
        if len(losses) <= SKIPPED + 2:
            return None
        lowest = SKIPPED + int(losses[SKIPPED:].argmin())
        noise = float(np.std(np.diff(self.losses[: lowest + 1]))) / math.sqrt(2)
        needed = FALL * noise + 1e-6 * abs(losses[SKIPPED])  # without noise, rounding is not a fall
        if lowest - SKIPPED < 2 or losses[SKIPPED] - losses[lowest] <= needed:
            return None
        part = slice(SKIPPED, lowest + 1)
        slopes = np.gradient(losses[part], np.log(self.rates[part]))
        return float(f"{self.rates[SKIPPED + int(slopes.argmin())]:.2g}")

    def save(self, path: str | Path) -> Path:
        """Draws the losses over the rates.

        Raises:
            ConfigError: the suffix names no format of images.
            FocalNetError: the file cannot be written.
        """
        from focalnet.visualize import draw_range_test

        path = Path(path)
        check_suffix(path)
        figure = draw_range_test(self.rates, self.losses, self.smoothed, self.suggestion)
        with atomic(path, ConfigError) as part:
            figure.savefig(part, format=path.suffix[1:], dpi=144)
        return path


def check_suffix(path: Path) -> None:
    """Raises ConfigError for a file that is not to be a PNG, SVG or PDF."""
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"{path}: the plot must end in .png, .svg or .pdf")


def find_learning_rate(
    recipe: Mapping[str, Any],
    *,
    lowest: float = 1e-6,
    highest: float = 1.0,
    updates: int = 100,
    trusted: bool = False,
) -> RangeTest:
    """Trains from the recipe's start with a rate that rises exponentially, until the loss has diverged.

    Ratios between parameter groups (``layer_decay``, ``backbone_scale``) and the scaling with the batch size are those
    of the recipe: rates are values of ``model.optimizer.lr``. The images come in the order of the run's first epochs.

    Args:
        recipe: nested options.
        lowest: first rate.
        highest: last rate.
        updates: number of rates.
        trusted: whether the recipe may import any code; see ``Options``.

    Raises:
        ConfigError: an impossible range, several processes, or a strategy that shards.
        TrainingError: the test had to stop.
    """
    if not 0 < lowest < highest < math.inf:
        raise ConfigError(f"the lowest rate, {lowest:g}, must be above 0 and below the highest, {highest:g}")
    if updates < 2 * SKIPPED:
        raise ConfigError(f"{updates} updates are too few for a range test: at least {2 * SKIPPED}")
    with explained():
        options = Options(recipe, trusted=trusted)
        pl.seed_everything(options.values.seed_everything, workers=True, verbose=False)
        task, data, arguments = options.build()
        if arguments["strategy"] == "fsdp":
            raise ConfigError("a range test cannot be combined with trainer.strategy=fsdp: leave it out")
        for name in (*OWN_TRAINER_OPTIONS, "max_steps", "max_time", "fast_dev_run", "min_epochs", "min_steps"):
            arguments.pop(name, None)
        watch = _Watch(np.geomspace(lowest, highest, updates).tolist())
        try:
            trainer = pl.Trainer(
                **{
                    **arguments,
                    "callbacks": [watch],
                    "logger": False,
                    "enable_checkpointing": False,
                    "limit_val_batches": 0,
                    "check_val_every_n_epoch": 1,
                    "val_check_interval": None,
                    "max_epochs": max(arguments["max_epochs"], updates * arguments["accumulate_grad_batches"]),
                }
            )
        except (ValueError, TypeError, ImportError) as error:
            raise ConfigError(f"trainer: {error}") from error
        if trainer.world_size > 1:
            raise ConfigError("a range test runs in one process: add --trainer.devices 1 --trainer.num_nodes 1")
        keep_freed_memory()
        trainer.fit(task, data)
        if trainer.interrupted:
            raise KeyboardInterrupt
    return RangeTest(tuple(watch.rates[: len(watch.losses)]), tuple(watch.losses))


class _Watch(pl.Callback):
    """Sets the rate before every update, and ends the test when the loss has diverged or the rates are through."""

    def __init__(self, rates: list[float]) -> None:
        self.rates = rates
        self.losses: list[float] = []
        self._of_update: list[float] = []
        self._scales: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        (scheduler,) = (entry.scheduler for entry in trainer.lr_scheduler_configs)
        optimizer = pl_module.optimizer_config
        batch = pl_module.data.batch_size * trainer.accumulate_grad_batches
        # Of each group, over model.optimizer.lr: layer decay, and the scaling with the batch.
        self._scales = [float(base) / optimizer.lr * optimizer.scale(batch) for base in scheduler.base_lrs]
        trainer.strategy.lr_scheduler_configs = []  # the rate is set here
        self._set_rates(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._of_update.append(outputs["loss"].item())
        if trainer.global_step == len(self.losses):
            return  # gradients are accumulated
        loss = sum(self._of_update) / len(self._of_update)
        self._of_update = []
        if math.isfinite(loss):
            self.losses.append(loss)
            smoothed = RangeTest((), tuple(self.losses)).smoothed
            diverged = len(smoothed) > SKIPPED and smoothed[-1] > DIVERGED * min(smoothed)
        else:
            diverged = True
        if diverged or len(self.losses) == len(self.rates):
            trainer.should_stop = True
            return
        self._set_rates(trainer)

    def _set_rates(self, trainer: pl.Trainer) -> None:
        for group, scale in zip(trainer.optimizers[0].param_groups, self._scales, strict=True):
            group["lr"] = scale * self.rates[len(self.losses)]
