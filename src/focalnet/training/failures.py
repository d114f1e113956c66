"""What stops a run from outside, each as one line that says what is wrong and what was kept."""

from __future__ import annotations

import atexit
import errno
import gc
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.utilities.exceptions import SIGTERMException

from focalnet.errors import ConfigError, FocalNetError, TrainingError
from focalnet.training.event_log import silent_writer
from focalnet.training.probe import WAY_OUT
from focalnet.training.run_folder import RunFolder, Stopped
from focalnet.training.stopping import StopNow


@contextmanager
def explained(folder: RunFolder | None = None) -> Iterator[None]:
    """Turns what stops a run into our errors.

    Args:
        folder: of the run, to say what was kept in it.

    Raises:
        TrainingError: full disk, a dead loader worker or process, no memory left, a signal, or raised within.
        ConfigError: Lightning or PyTorch refuses the combination of options.
        KeyboardInterrupt: in place of Lightning's ``SystemExit``.
    """
    try:
        with warnings.catch_warnings(), silent_writer():
            warnings.simplefilter("ignore", PossibleUserWarning)  # advice on numbers of workers and logging intervals
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists")  # that is how a run goes on
            warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec", FutureWarning)  # Lightning's own
            yield
    except MisconfigurationException as error:
        raise ConfigError(" ".join(str(error).split())) from error
    except (Exception, SystemExit) as error:
        atexit.register(_forget_errors)
        if _is_interrupt(error):
            signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning has switched it off
            raise KeyboardInterrupt from error
        if isinstance(error, Stopped):
            raise
        if isinstance(error, ValueError) and "SyncBatchNorm" in str(error):
            raise ConfigError(
                "PyTorch synchronises batch norm on GPUs only: train on those, or add --trainer.sync_batchnorm false"
            ) from error
        if folder is not None and isinstance(error, RuntimeError) and "Error(s) in loading state_dict" in str(error):
            detail = str(error).strip().splitlines()[-1].strip()
            raise ConfigError(
                f"{folder.root}: the checkpoint there does not fit the network ({detail}); if the classes of the data "
                "have changed, choose another --output, or --force to start afresh"
            ) from error
        if reason := _reason(error):
            raise TrainingError(f"{reason}; {_kept(folder)}") from error
        raise


def _forget_errors() -> None:
    """Frees the networks that errors have left in cycles of references: PyTorch aborts where Python's exit has to."""
    for name in ("last_exc", "last_value", "last_traceback"):
        sys.__dict__.pop(name, None)
    gc.collect()


def _is_interrupt(error: BaseException) -> bool:
    return isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt)


def _reason(error: BaseException | None) -> str | None:
    """What went wrong, if it is not a mistake in the options or in the library."""
    if isinstance(error, TrainingError):
        return str(error)
    if isinstance(error, StopNow):
        return f"stopped by {error}"
    if isinstance(error, SIGTERMException) or _worker_got_sigterm(error):
        return "stopped by SIGTERM"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "no space left on the disk: make room"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{os.fsdecode(error.filename or 'the system')}: {error.strerror}"
    if _another_process_died(error):
        return "another process of this run has died; what it said, or the system's log, has the reason"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)):
        return f"out of memory: {WAY_OUT}, or lower --data.num_workers"
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of GPU memory: {WAY_OUT}"
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        return "a data loading worker died, most likely because memory ran out: lower --data.num_workers"
    return _reason(error.__cause__) if isinstance(error, FocalNetError) else None


def _worker_got_sigterm(error: BaseException | None) -> bool:
    """Whether a loader worker was stopped by SIGTERM, as when a scheduler sends it to every process of a job."""
    while error and "killed by signal: Terminated" not in str(error):
        error = error.__cause__ or error.__context__
    return error is not None


def _another_process_died(error: BaseException | None) -> bool:
    """Whether it is what processes in contact with each other (gloo, NCCL) say when one of them is gone."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    said = isinstance(error, RuntimeError) and ("gloo" in str(error) or "Connection closed by peer" in str(error))
    return said or isinstance(error, torch.distributed.DistError)


def _kept(folder: RunFolder | None) -> str:
    return "nothing was written" if folder is None else folder.kept()
