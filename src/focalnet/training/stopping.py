"""What becomes of a signal by which a scheduler or a terminal asks a run to end.

In training and validation the run ends at the next batch, with a checkpoint from which it goes on to the same weights;
before and after, where nothing would be lost, it ends at once. A signal that is ignored, as by ``nohup``, stays so.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.trainer.states import TrainerFn

from focalnet.samples import Batch
from focalnet.training.callbacks import refuse_nan
from focalnet.training.run_folder import RunFolder, Stopped

log = logging.getLogger(__name__)

#: What schedulers (SIGTERM, SIGUSR1) and closed terminals (SIGHUP) send.
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


class StopNow(SystemExit):
    """A signal came where there is nothing to wait for. No ``except Exception`` may swallow it."""


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
        self._signals = signals

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
        self.name = signal.Signals(number).name
        if not self.waits:
            raise StopNow(self.name)


class StopOnSignal(pl.Callback):
    """Ends a run at the next batch once any of its processes has been asked to end, and writes a checkpoint first.

    Args:
        request: of this process.
        folder: of the run.
        requeue: of SLURM: the signal at which the job is queued again; None for never.
    """

    def __init__(self, request: StopRequest, folder: RunFolder, requeue: signal.Signals | None) -> None:
        self.request, self.folder, self.requeue = request, folder, requeue
        self.in_validation = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.request.listen()  # Lightning has registered itself by now
        self.request.waits = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.request.waits = False
        if self._asked(trainer):
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
        if trainer.state.fn == TrainerFn.FITTING and self._asked(trainer):
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

    def _asked(self, trainer: pl.Trainer) -> bool:
        """Whether any process of the run has been asked to end; all processes take part in the question."""
        return trainer.strategy.reduce_boolean_decision(self.request.name is not None, all=False)

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.folder.checkpoint, weights_only=False)

    def _stop(self, trainer: pl.Trainer) -> None:
        name = self.request.name or "a signal to another of its processes"
        if trainer.is_global_zero and self.requeue is not None and self.request.name == self.requeue.name:
            _requeue()
        raise Stopped(f"stopped by {name}; {self.folder.kept()}")


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
