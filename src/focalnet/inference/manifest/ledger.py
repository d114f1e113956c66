"""The ledger of a job: which shards are finished, and which process has which.

Any number of processes, on any number of machines that share the folder, work on one job. The operating system holds
their claims: each shard is one byte of the file ``.lock``, which the process locks (POSIX record locks, which network
file systems share between machines), so that whatever ends a process, ``kill -9`` included, frees what it had. A shard
is finished once ``_ledger.jsonl`` has a line of it, which is written when the shard itself is on disk: where a process
was killed between the two, the shard is predicted again, to a file of the same name.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from focalnet.errors import ConfigError, DataError, FocalNetError
from focalnet.files import NO_LOCKS, write

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

NAME, LOCK = "_ledger.jsonl", ".lock"
VERSION = 1
_PART = re.compile(r"\.part-(\d+)\..*\.part")  # what a killed process leaves of a shard; see ``files.atomic``
_WRITING = 0  # the byte that is locked to write to the ledger; those behind it are the shards'
_PATIENCE_S = 0.2  # between looks at shards that other processes have

# Folders in which this process works: its own locks would not keep it from working in one twice.
_own: set[Path] = set()


class Totals(NamedTuple):
    """What is finished of a job, or of a share of it.

    Args:
        shards: finished shards.
        rows: rows in them.
        errors: rows among them that have an error instead of a result.
        missing: shards that are not finished.
    """

    shards: int
    rows: int
    errors: int
    missing: int


class Progress:
    """What a ledger says, for those who only read it.

    Args:
        folder: of the output.
        shards: number of shards of the job.
    """

    def __init__(self, folder: Path, shards: int) -> None:
        self.folder, self.path = folder, folder / NAME
        self._rows = np.full(shards, -1, np.int64)  # -1: not finished
        self._errors = np.zeros(shards, np.int64)
        self._read = 0  # bytes of the ledger that are in these

    def totals(self, shards: Sequence[int]) -> Totals:
        """What is finished of some shards."""
        self.refresh()
        chosen = np.asarray(shards, np.int64)
        done = chosen[self._rows[chosen] >= 0]
        return Totals(len(done), int(self._rows[done].sum()), int(self._errors[done].sum()), len(chosen) - len(done))

    def refresh(self) -> list[dict[str, Any]]:
        """Reads what was added to the ledger, and returns the entries of shards in it."""
        with _using(self.folder):
            try:
                file = self.path.open("rb")
            except FileNotFoundError:  # not yet begun
                return []
            with file:
                file.seek(self._read)
                added = file.read()
        complete = added[: added.rfind(b"\n") + 1]  # the rest is being written
        self._read += len(complete)
        entries = [entry for line in complete.splitlines() if (entry := self._entry(line))]
        for entry in entries:
            self._rows[entry["shard"]], self._errors[entry["shard"]] = entry["rows"], entry["errors"]
        return entries

    def _entry(self, line: bytes) -> dict[str, Any] | None:
        """The entry of a shard; None for the header, and for a line that is cut short: its shard is done again."""
        try:
            entry: dict[str, Any] = json.loads(line)
            valid = 0 <= entry["shard"] < len(self._rows) and entry["rows"] >= entry["errors"] >= 0
            return entry if valid and (entry["file"], entry["bytes"]) else None
        except (ValueError, KeyError, TypeError):
            return None


class Ledger(Progress):
    """The ledger of a job for a process that works on it; to be closed.

    Args:
        folder: of the output.
        header: what the job is: ``manifest`` and ``model``, each with its ``sha256``, ``options`` and ``shards``, their
            number. It is written to a new ledger. The attribute is that of the ledger itself.

    Raises:
        ConfigError: the ledger is of another job, or this process already works in the folder.
        DataError: the ledger cannot be read, or the folder has shards and no ledger.
        FocalNetError: the folder cannot be written.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        super().__init__(folder, int(header["shards"]))
        self.locks = fcntl is not None
        self._key = folder.resolve()
        if self._key in _own:
            raise ConfigError(f"this process already predicts to {folder}: choose another --out")
        with _using(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        _own.add(self._key)
        try:
            with self._alone():
                for left in folder.glob(f".{NAME}.*.part"):  # of a process that was killed right here
                    left.unlink()
                known = read_header(folder)
                if known is None:
                    known = {"format": VERSION, **header}
                    write(self.path, json.dumps(known).encode() + b"\n")
            compare(known, header, folder)
            self.header = known
            self._check_files()
            self._remove_parts()
        except BaseException:
            self.close()
            raise
        if not self.locks:
            logger.warning(
                "%s: this file system has no file locks: make sure that only one run works on these shards at a time",
                folder,
            )

    def close(self) -> None:
        """Gives all claims back."""
        _own.discard(self._key)
        os.close(self._descriptor)

    def claimed(self, shards: Sequence[int]) -> Iterator[int]:
        """Yields those of some shards that nobody has finished, one after another, each claimed while it is used.

        Shards that other processes have are waited for, and yielded if such a process ends without finishing them.

        Args:
            shards: in order.
        """
        waiting = shards
        while True:
            self.refresh()
            others = []
            for shard in waiting:
                if self._rows[shard] >= 0:
                    continue
                with self._claim(shard) as has_it:
                    self.refresh()  # it may have been finished a moment ago
                    if not has_it:
                        others.append(shard)
                    elif self._rows[shard] < 0:
                        yield shard
            if not others:
                self._remove_parts()  # of processes that were killed meanwhile
                return
            waiting = others
            time.sleep(_PATIENCE_S)

    def record(self, shard: int, file: Path, entry: Mapping[str, Any]) -> None:
        """Writes down that a claimed shard is finished.

        Args:
            shard: its number.
            file: with its rows, on disk.
            entry: ``rows`` and ``errors``, how many there are, and anything else to note.
        """
        with _using(self.folder):
            _sync(self.folder)  # no power failure takes the file and leaves its line
            line = {"shard": shard, "file": file.name, "bytes": file.stat().st_size, **entry}
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND)  # never a new file, without a header
            with self._alone(), open(descriptor, "ab+") as ledger:
                ledger.seek(-1, os.SEEK_END)
                cut_short = ledger.read(1) != b"\n"  # by a process that was killed while it wrote
                ledger.write(b"\n" * cut_short + json.dumps(line).encode() + b"\n")
                ledger.flush()
                os.fsync(ledger.fileno())
        self.refresh()

    def _check_files(self) -> None:
        """Marks finished shards whose files are not what was written: they are done again."""
        for entry in {entry["shard"]: entry for entry in self.refresh()}.values():
            file = self.folder / entry["file"]
            with suppress(OSError):
                if file.stat().st_size == entry["bytes"]:
                    continue
            logger.warning("%s: is missing or was changed, and is predicted again", file)
            self._rows[entry["shard"]] = -1

    def _remove_parts(self) -> None:
        """Removes what killed processes left of shards that nobody has now."""
        for name in os.listdir(self.folder) if self.locks else ():
            if (left := _PART.fullmatch(name)) is not None:
                with self._claim(int(left[1])) as has_it:
                    if has_it:
                        (self.folder / name).unlink(missing_ok=True)

    @contextmanager
    def _claim(self, shard: int) -> Iterator[bool]:
        """Within, the process has the shard, unless it gets False."""
        with self._locked(1 + shard, wait=False) as has_it:
            yield has_it

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Within, no other process writes to the ledger."""
        with self._locked(_WRITING, wait=True):
            yield

    @contextmanager
    def _locked(self, byte: int, *, wait: bool) -> Iterator[bool]:
        has_it = self._lock(byte, wait=wait)
        try:
            yield has_it
        finally:
            if has_it and self.locks:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, byte)

    def _lock(self, byte: int, *, wait: bool) -> bool:
        if not self.locks:
            return True
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, byte)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            if error.errno not in NO_LOCKS:
                raise FocalNetError(
                    f"cannot lock {self.folder / LOCK}: {error.strerror}; choose another --out"
                ) from error
            self.locks = False
        return True


def shard_name(shard: int, suffix: str) -> str:
    """The name of the file with the rows of a shard, counted from 0."""
    return f"part-{shard:05}.{suffix}"


def read_header(folder: Path) -> dict[str, Any] | None:
    """The header of the ledger in a folder, which says what the job is; None where there is no ledger.

    Raises:
        DataError: it cannot be read, or there are shards without a ledger.
    """
    path = folder / NAME
    try:
        with path.open("rb") as file:
            header: dict[str, Any] = json.loads(file.readline())
        if header["format"] != VERSION:
            raise DataError(f"{path}: is of another version of focalnet; choose another --out")
        known = header["manifest"]["sha256"], header["model"]["sha256"], header["model"]["name"], header["folder"]
        if not all(known) or not header["shards"] or not header["options"]:
            raise KeyError
        return header
    except FileNotFoundError:
        if any(re.match(r"part-\d+\.", name) for name in _names(folder)):
            raise DataError(f"{folder}: has shards of a job without its {NAME}; choose another --out") from None
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; choose another --out") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is damaged; choose another --out") from error


def compare(known: Mapping[str, Any], header: Mapping[str, Any], folder: Path) -> None:
    """Raises ConfigError where a job is not the one that was begun in a folder.

    Args:
        known: header of the ledger in the folder.
        header: of the job; its ``model`` may be missing as long as it is not known.
        folder: for the message.
    """
    begun, way_out = f"{folder} was begun with", "give the same again, or choose another --out"
    before, now = known["options"], header["options"]
    for option in before | now:
        if before.get(option) != now.get(option):
            shown = _shown(option, before.get(option)), _shown(option, now.get(option))
            raise ConfigError(f"{begun} {shown[0]}, not {shown[1]}: {way_out}")
    if known["manifest"]["sha256"] != header["manifest"]["sha256"] or known["shards"] != header["shards"]:
        raise ConfigError(f"{begun} another manifest, or this one before it was changed: {way_out}")
    if "model" in header and known["model"]["sha256"] != header["model"]["sha256"]:
        raise ConfigError(f"{begun} another model, or other weights of it ({known['model']['name']}): {way_out}")


def _shown(option: str, value: Any) -> str:
    """An option as it is given on the command line."""
    if value is None or value == []:
        return f"no --{option}"
    return f"--{option} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FocalNetError(f"cannot use {folder}: {error.strerror}; choose another --out") from error


def _sync(folder: Path) -> None:
    """Waits until renamed files are on disk under their new names; Windows opens no folders."""
    with suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _using(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FocalNetError(f"cannot use {folder}: {error.strerror}; choose another --out or make room") from error
