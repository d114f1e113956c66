"""What a person sees of a run that trains: a live bar on terminals and in notebooks, lines of the log elsewhere."""

from __future__ import annotations

import builtins
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from tqdm.std import tqdm

from focalnet.samples import Batch
from focalnet.training.callbacks import Progress, duration, headline
from focalnet.training.tasks.base import Task

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

FORMAT = "{desc} {percentage:3.0f}% |{bar:20}| {n_fmt}/{total_fmt}{postfix}"


def is_watched() -> bool:
    """Whether somebody looks: stderr is a terminal, or the code runs in a notebook."""
    return in_notebook() or sys.stderr.isatty()


def in_notebook() -> bool:
    """Whether a kernel of Jupyter runs the code."""
    shell = getattr(builtins, "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


class Bar(pl.Callback):
    """A bar for each epoch and each validation, with rate, time left, memory, loss and headline metrics.

    Args:
        progress: counts images and time.
        every_s: seconds between two readings of the loss, each of which waits for the device.
    """

    def __init__(self, progress: Progress, every_s: float = 0.5) -> None:
        self.progress, self.every_s = progress, every_s
        self.progress.every_s = float("inf")  # the bar says what its lines would
        self.bar: Any = None
        self.read = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.fit_loop.batch_idx and self.progress.within_epoch:  # resumed within an epoch: none starts
            self._open(trainer, int(trainer.num_training_batches), trainer.fit_loop.batch_idx)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._open(trainer, int(trainer.num_training_batches))

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch[Any],
        batch_idx: int,
    ) -> None:
        if self.bar is None:
            return
        assert isinstance(pl_module, Task)
        if time.monotonic() - self.read > self.every_s:
            self.read = time.monotonic()
            rate, left = self.progress.rate_and_time_left(trainer, batch_idx)
            said = [f"{rate:,.0f} img/s", f"{duration(left)} left", f"{memory(pl_module.device) / 2**30:.1f} GiB"]
            said += [f"loss {outputs['loss'].item():.3f}", *headline(pl_module.metrics)]
            self.bar.set_postfix_str("  ".join(said), refresh=False)
        self.bar.update()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()
        fitting = trainer.state.fn == TrainerFn.FITTING
        batches = trainer.num_val_batches if fitting else trainer.validate_loop.max_batches
        self._open(trainer, int(sum(batches)), what="validation")

    def on_validation_batch_end(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.update()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _open(self, trainer: pl.Trainer, batches: int, done: int = 0, what: str = "") -> None:
        self._close()
        self.read = 0.0  # so that the first batch has its figures
        if trainer.is_global_zero:
            what = what or f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self.bar = tqdm(
                total=batches,
                initial=done,
                desc=what,
                leave=False,
                bar_format=FORMAT,
                dynamic_ncols=True,
                file=sys.stderr,
            )

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def memory(device: torch.device) -> int:
    """Bytes that training has needed at most so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def shown_in_python(handler: logging.Handler) -> Iterator[None]:
    """Within, a program that has not set up logging, but is watched, shows what the library logs.

    Args:
        handler: that shows it.
    """
    logger = logging.getLogger("focalnet")
    if not is_watched() or logger.hasHandlers():
        yield
        return
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
