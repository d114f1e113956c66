"""What TensorBoard shows of a run, which is no reason to end one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

from focalnet.training.run_folder import RunFolder

log = logging.getLogger(__name__)


class EventLog(TensorBoardLogger):
    """Lightning's logger, which ends with one warning where its files cannot be written; the run goes on.

    Args:
        folder: of the run; where it is gone altogether, the run ends.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder.root, name="", version=folder.tensorboard.name, default_hp_metric=False)
        self._folder = folder
        self._broken = False

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        self._do(super().log_metrics, *args, **kwargs)

    def save(self) -> None:
        self._do(super().save)

    def finalize(self, status: str) -> None:
        if not self._broken:
            self._works(super().finalize, status)  # called for errors, too, of which there must be one only

    def _do(self, action: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        if not self._broken and not self._works(action, *args, **kwargs):
            self._folder.check()
            log.warning("cannot write %s; the run goes on without it", self._folder.tensorboard)

    def _works(self, action: Callable[..., None], *args: Any, **kwargs: Any) -> bool:
        try:
            action(*args, **kwargs)
        except OSError as error:
            self._broken = True
            error.__traceback__ = None  # the writer keeps its error, and must not keep the frames of a training step
        return not self._broken


@contextmanager
def silent_writer() -> Iterator[None]:
    """Within, the thread that writes TensorBoard's files dies without a traceback: ``EventLog`` meets its error."""
    before = threading.excepthook

    def unless_written(arguments: threading.ExceptHookArgs) -> None:
        writes = type(arguments.thread).__module__.startswith("tensorboard")
        if not (writes and isinstance(arguments.exc_value, OSError)):
            before(arguments)

    threading.excepthook = unless_written
    try:
        yield
    finally:
        threading.excepthook = before
