"""What ends a run before its last epoch: a signal, Ctrl-C, a limit of its options.

In training and validation the run ends at the next batch, with a checkpoint from which it goes on to the same weights;
before and after, where nothing would be lost, it ends at once. After a limit or Ctrl-C, weights, report and results are
made of that checkpoint; a scheduler's signal leaves no time for that. A signal that is ignored, as by ``nohup``, stays
so.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.trainer.states import TrainerFn

from focalnet.samples import Batch
from focalnet.training.callbacks import Progress, refuse_nan
from focalnet.training.keeping import Best
from focalnet.training.run_folder import INTERRUPTED, RunFolder, Stopped

log = logging.getLogger(__name__)

#: What schedulers (SIGTERM, SIGUSR1) and closed terminals (SIGHUP) send.
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


class Ended(Exception):
    """A run ends before its last epoch, and its checkpoint is written: weights, report and results follow.

    Args:
        why: what ``results.json`` says of it: the name of an option, or ``INTERRUPTED``.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class StopNow(SystemExit):
    """A signal came where there is nothing to wait for. No ``except Exception`` may swallow it."""


ENDS_SOON = (
    "Ctrl-C: the run ends after this update, with a checkpoint, weights and report; press it again to end at once"
)


class StopRequest:
    """Whether this process has been asked to end.

    Attributes:
        name: of the signal; None so far.
        waits: for the end of a batch: the signal is only noted.
    """

    def __init__(self, signals: list[signal.Signals]) -> None:
        self.name: str | None = None
        self.waits = False
        self._process = os.getpid()
        self._signals = [*signals, signal.SIGINT]

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Notices signals within."""
        before = {number: signal.getsignal(number) for number in self._signals}
        self.listen()
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in before.items():
                    if handler is not None:  # None: not set from Python
                        signal.signal(number, handler)

    def listen(self) -> None:
        """Notices signals from now on, in place of Lightning, which keeps nothing of an epoch that they end."""
        if threading.current_thread() is not threading.main_thread():
            return  # of a program that has its own way with signals
        for number in self._signals:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._notice)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a loader worker that was forked from us: it ends with us
        again = self.name == "SIGINT"
        self.name = signal.Signals(number).name
        if number == signal.SIGINT:
            if again or not self.waits:
                raise KeyboardInterrupt
            if os.environ.get("LOCAL_RANK", "0") == "0":  # in a thread: the handler may interrupt another message
                threading.Thread(target=log.warning, args=(ENDS_SOON,)).start()
        elif not self.waits:
            raise StopNow(self.name)


@dataclass(frozen=True)
class Limits:
    """What ends a run before its last epoch.

    Args:
        max_steps: optimizer updates; None for no limit.
        max_seconds: of training with its validations, over all starts of the run; None for no limit.
        patience: validations in a row without a better headline metric; None for no limit.
    """

    max_steps: int | None = None
    max_seconds: float | None = None
    patience: int | None = None


class StopOnSignal(pl.Callback):
    """Ends a run at the next batch once any of its processes has a reason to, and writes a checkpoint first.

    Args:
        request: of this process.
        folder: of the run.
        requeue: of SLURM: the signal at which the job is queued again; None for never.
        limits: what else ends the run.
    """

    def __init__(
        self,
        request: StopRequest,
        folder: RunFolder,
        requeue: signal.Signals | None,
        limits: Limits = Limits(),
    ) -> None:
        self.request, self.folder, self.requeue, self.limits = request, folder, requeue, limits
        self.in_validation = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.request.listen()  # Lightning has registered itself by now
        self.request.waits = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.request.waits = False
        if self._signalled(trainer):
            self._stop(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch and self._asked(trainer):
            self._stop(trainer)  # the epoch before has its checkpoint

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch[Any],
        batch_idx: int,
    ) -> None:
        if trainer.is_last_batch:
            return  # validation or the end of the epoch follow
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and self._asked(trainer):  # no gradients are pending
            refuse_nan(trainer, outputs["loss"], batch_idx)
            self._save(trainer)
            self._stop(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.state.fn == TrainerFn.FITTING and self._any(trainer, self.request.name is not None):
            self.in_validation = True
            self._save(trainer)
            self._stop(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Within a validation, the one that goes on from the checkpoint does all of it: figures need every image."""
        if self.in_validation:
            nothing = dict.fromkeys(("ready", "started", "processed", "completed"), 0)
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            progress["current"] |= nothing
            progress["total"] |= nothing | {"ready": 1, "started": 1}  # what Lightning takes for "within a validation"
            progress["is_last_batch"] = False

    def _limit(self, trainer: pl.Trainer) -> str | None:
        """The option by which this process ends the run now; None while it goes on."""
        if self.limits.max_steps is not None and trainer.global_step >= self.limits.max_steps:
            return "trainer.max_steps"
        if self.limits.max_seconds is not None and _callback(trainer, Progress).elapsed() >= self.limits.max_seconds:
            return "trainer.max_time"
        if self.limits.patience is not None and _callback(trainer, Best).since >= self.limits.patience:
            return "trainer.patience"
        return None

    def _any(self, trainer: pl.Trainer, condition: bool) -> bool:
        """Whether it holds in any process of the run; all processes take part in the question."""
        return trainer.strategy.reduce_boolean_decision(condition, all=False)

    def _asked(self, trainer: pl.Trainer) -> bool:
        """Whether any process of the run has a reason to end."""
        return self._any(trainer, self.request.name is not None or self._limit(trainer) is not None)

    def _signalled(self, trainer: pl.Trainer) -> bool:
        """Whether a scheduler or a closed terminal has asked any process to end."""
        return self._any(trainer, self.request.name not in (None, "SIGINT"))

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.folder.checkpoint, weights_only=False)

    def _stop(self, trainer: pl.Trainer) -> None:
        if not self._signalled(trainer):
            interrupted = self._any(trainer, self.request.name == "SIGINT")
            why = trainer.strategy.broadcast(self._limit(trainer)) or "trainer.max_time"  # of another process' clock
            raise Ended(INTERRUPTED if interrupted else why)
        name = self.request.name or "a signal to another of its processes"
        if trainer.is_global_zero and self.requeue is not None and self.request.name == self.requeue.name:
            _requeue()
        raise Stopped(f"stopped by {name}; {self.folder.kept()}")


C = TypeVar("C", bound=pl.Callback)


def _callback(trainer: pl.Trainer, kind: type[C]) -> C:
    return next(callback for callback in trainer.callbacks if isinstance(callback, kind))  # type: ignore[attr-defined]


class PeriodicCheckpoints(pl.Callback):
    """Writes ``last.ckpt`` within an epoch, too, at a batch after which no gradients are pending.

    Args:
        folder: of the run.
        updates: optimizer updates between two checkpoints; None for no such limit.
        minutes: between two checkpoints; None for no such limit.
    """

    def __init__(self, folder: RunFolder, updates: int | None, minutes: float | None) -> None:
        self.folder, self.updates, self.minutes = folder, updates, minutes
        self.written = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.written = time.monotonic()  # the epoch before has its checkpoint

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch[Any],
        batch_idx: int,
    ) -> None:
        if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        due = self.updates is not None and trainer.global_step % self.updates == 0
        if self.minutes is not None:
            late = time.monotonic() - self.written >= 60 * self.minutes
            due = trainer.strategy.reduce_boolean_decision(due or late, all=False)
        if due:
            refuse_nan(trainer, outputs["loss"], batch_idx)
            trainer.save_checkpoint(self.folder.checkpoint, weights_only=False)
            self.written = time.monotonic()


def slurm_requeue_signal(plugins: list[Any]) -> signal.Signals | None:
    """The signal at which Lightning would queue a SLURM job again; None where it would not.

    Args:
        plugins: of the trainer.
    """
    given = [plugin for plugin in plugins if isinstance(plugin, SLURMEnvironment)]
    if not given and not SLURMEnvironment.detect():
        return None
    environment = given[0] if given else SLURMEnvironment()
    number = environment.requeue_signal if environment.auto_requeue else None
    return None if number is None else signal.Signals(number)


def _requeue() -> None:
    """Queues the SLURM job of this process again."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        log.warning("SLURM does not queue job %s again (%s)", job, error)
    else:
        log.info("queued job %s again", job)
