"""The processes of a run that Lightning starts, ``trainer.devices=N`` without torchrun or SLURM: none outlives another.

One that dies leaves the others waiting for it, on GPUs for half an hour. Whatever notices first speaks: the connection
between them, whose error is an ordinary one, or else this.
"""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl

log = logging.getLogger(__name__)

#: Who starts the others says so in their environment.
STARTER = "FOCALNET_STARTED_BY"
EXIT_CODE = 2


class Watch(pl.Callback):
    """Ends this process, in one line, when the one that started it has died, or one that it has started.

    Args:
        every_s: between two looks.
        patience_s: so long the process may take to end by itself, with the error that it meets.
    """

    def __init__(self, every_s: float = 1.0, patience_s: float = 10.0) -> None:
        self.every_s, self.patience_s = every_s, patience_s
        self._started: list[subprocess.Popen[bytes]] = []
        self._over = False
        self._watching = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watches within."""
        before = os.environ.get(STARTER)
        self._starter = int(before) if before and int(before) == os.getppid() else None
        os.environ[STARTER] = str(os.getpid())
        try:
            yield
        except BaseException:
            self._end_started()
            raise
        finally:
            self._over = True
            os.environ.pop(STARTER)
            if before is not None:
                os.environ[STARTER] = before

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """All processes are there by now."""
        listed = getattr(trainer.strategy.launcher, "procs", [])
        started = [process for process in listed if isinstance(process, subprocess.Popen)]
        if started:
            self._started = started
            listed.clear()  # or Lightning's own observer kills this process without a word
        if (self._started or self._starter is not None) and not self._watching:
            self._watching = True
            threading.Thread(target=self._look, daemon=True, name="focalnet-watch").start()

    def _look(self) -> None:
        while not self._over:
            time.sleep(self.every_s)
            if dead := self._dead():
                time.sleep(self.patience_s)
                if self._over:
                    return
                log.error("error: %s, and this process ends with it", dead)
                for process in self._started:
                    process.kill()
                os._exit(EXIT_CODE)

    def _end_started(self) -> None:
        """After an error of this process: those that it has started end by themselves or are killed."""
        until = time.monotonic() + self.patience_s / 2
        for process in self._started:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()

    def _dead(self) -> str | None:
        if self._starter is not None and os.getppid() != self._starter:
            return f"process {self._starter} of this run has died"
        for process in self._started:
            if process.poll():
                return f"process {process.pid} of this run has died (exit code {process.returncode})"
        return None
