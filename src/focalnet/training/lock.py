"""The lock of a run's folder: one run at a time works in it, and whoever comes second is told who the first is.

The operating system holds it (a POSIX record lock, which network file systems share between machines): whatever ends a
process, ``kill -9`` included, frees it, and loader workers do not inherit it. The file says whose it is.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from focalnet.errors import ConfigError, TrainingError
from focalnet.files import NO_LOCKS

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

# Files that this process has locked, by device and inode. POSIX locks are between processes, and closing any descriptor
# of a file gives its lock up: a second run within the process must not even open it.
_own: set[tuple[int, int]] = set()


class RunLock:
    """The lock of one folder.

    Args:
        path: of the file; its folder is the run's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object has the lock."""
        return self._descriptor is not None

    @property
    def in_place(self) -> bool:
        """Whether the folder still is the one that was locked: not removed, renamed or replaced since."""
        try:
            return self._descriptor is not None and _identity(os.stat(self.path)) == self._identity
        except OSError:
            return False

    def take(self) -> None:
        """Takes the lock; makes the folder if need be.

        Raises:
            ConfigError: another run has it; the message says which.
            TrainingError: the folder cannot be written to.
        """
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            while self._descriptor is None:
                self._descriptor = self._locked()
            self._identity = _identity(os.fstat(self._descriptor))
            previous = _holder(self._descriptor)
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(holder).encode(), 0)
        except OSError as error:
            self.release()
            raise TrainingError(f"cannot write {folder}: {error.strerror}; choose another --output") from error
        _own.add(self._identity)
        if previous:
            log.warning("%s: taking over from %s, which has ended", folder, _name(previous))

    def refuse_if_taken(self) -> None:
        """Raises ConfigError where another run has the lock; takes nothing."""
        try:
            self._refuse_if_own()
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError:  # not there, or out of reach, which ``take`` will say
            return
        try:
            self._lock(descriptor, shared=True)
        finally:
            os.close(descriptor)

    def release(self) -> None:
        """Gives the lock back and removes its file."""
        if self._descriptor is None:
            return
        if self.in_place:
            with suppress(OSError):
                self.path.unlink()
        _own.discard(self._identity)
        os.close(self._descriptor)
        self._descriptor = None

    def _locked(self) -> int | None:
        """A descriptor of the locked file; None where a run that ended has removed the file meanwhile."""
        with suppress(FileNotFoundError):
            self._refuse_if_own()
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._lock(descriptor)
            with suppress(FileNotFoundError):
                if _identity(os.stat(self.path)) == _identity(os.fstat(descriptor)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def _lock(self, descriptor: int, *, shared: bool = False, patience_s: float = 0.5) -> None:
        """Locks an open file. Those who only look, ``shared``, let go of it at once, and are waited for."""
        until = time.monotonic() + patience_s
        while fcntl is not None:
            try:
                fcntl.lockf(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno in NO_LOCKS:
                    break
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                if time.monotonic() > until:
                    raise self._refusal(_holder(descriptor)) from None
            time.sleep(0.05)
        if _lives_here(holder := _holder(descriptor)):
            raise self._refusal(holder)
        if not shared:
            log.warning(
                "%s: this file system has no file locks: make sure that only one run uses this folder at a time",
                self.path.parent,
            )

    def _refuse_if_own(self) -> None:
        if _identity(os.stat(self.path)) in _own:
            raise self._refusal({"pid": os.getpid(), "host": socket.gethostname()})

    def _refusal(self, holder: dict[str, Any]) -> ConfigError:
        return ConfigError(
            f"{self.path.parent} is in use by {_name(holder)}: wait for it, stop it, or choose another --output"
        )


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _holder(descriptor: int) -> dict[str, Any]:
    """The owner in a lock file: ``pid``, ``host``, ``since``; empty if it names none."""
    with suppress(ValueError):
        holder = json.loads(os.pread(descriptor, 1000, 0))
        if isinstance(holder, dict):
            return holder
    return {}


def _name(holder: dict[str, Any]) -> str:
    since = f", since {holder['since']}" if "since" in holder else ""
    return f"another run (process {holder.get('pid', 'unknown')} on {holder.get('host', 'unknown')}{since})"


def _lives_here(holder: dict[str, Any]) -> bool:
    """Whether the process is another one of this machine, and runs; for file systems without locks."""
    pid = holder.get("pid")
    if fcntl is None or holder.get("host") != socket.gethostname() or not isinstance(pid, int) or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return True
