"""The folder of a run: what is in it, and whether a command starts, continues or finds it finished.

``config.yaml`` (every option), ``versions.json``, ``last.ckpt`` (everything needed to go on), ``previous.ckpt`` (the
one before it), ``metrics.csv`` (one row an epoch), ``tensorboard/``, and at the end ``model.safetensors``,
``report.html`` and, last of all, ``results.json``: its presence means that the run is finished. While a run works in
the folder, there is ``.lock``.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import yaml

from focalnet import files
from focalnet.errors import CheckpointError, ConfigError, TrainingError
from focalnet.training.checkpoints import ResumePoint, choose_resume_point, read_resume_point
from focalnet.training.lock import RunLock

if TYPE_CHECKING:
    from focalnet.training.options import Options

log = logging.getLogger(__name__)

#: Writes a file, whole or not at all.
write = partial(files.write, error=TrainingError)


#: Why a run has ended, as ``results.json`` has it; the others are names of options and callbacks.
COMPLETE, INTERRUPTED = "complete", "interrupted"


class Stopped(TrainingError):
    """A run that had to stop, whose message already says what was kept."""


class Start(NamedTuple):
    """What a run does in its folder.

    Attributes:
        state: starts there, goes on, or has nothing left to do.
        point: the checkpoint that it goes on from.
        seen: of the files that decided this, as they were.
        replaces: what is there is the trial of a ``trainer.fast_dev_run``, and is removed.
        extends: options that let the run go on longer than before, ``["trainer.max_epochs: 4, now 6"]``.
    """

    state: Literal["new", "unfinished", "finished"]
    point: ResumePoint | None = None
    seen: object = None
    replaces: bool = False
    extends: tuple[str, ...] = ()


NEW = Start("new")

#: Options that may be raised, or be left out, so that a run goes on.
LIMITS = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_time", "trainer.patience")
#: Options that may change from one start of a run to the next, since they change nothing of what is trained.
FREE = (
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.logger",
    "trainer.probe",
    "trainer.checkpoint_updates",
    "trainer.checkpoint_minutes",
    "trainer.enable_progress_bar",
    "data.num_workers",
)

#: What Lightning writes of its own accord at SIGUSR1 under SLURM; here it does not, but runs of earlier versions did.
FOR_SLURM = "hpc_ckpt_*.ckpt"


@dataclass(frozen=True)
class RunFolder:
    """Paths and state of a run's folder."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def versions(self) -> Path:
        return self.root / "versions.json"

    @property
    def checkpoint(self) -> Path:
        return self.root / "last.ckpt"

    @property
    def previous(self) -> Path:
        return self.root / "previous.ckpt"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.csv"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def weights(self) -> Path:
        return self.root / "model.safetensors"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def results(self) -> Path:
        return self.root / "results.json"

    @cached_property
    def lock(self) -> RunLock:
        """Held by the run that works in the folder."""
        return RunLock(self.root / ".lock")

    def start(self, options: Options, *, force: bool = False) -> Start:
        """Compares a run with the one that is there.

        Args:
            options: of the new run.
            force: it starts afresh, whatever is there.

        Raises:
            ConfigError: the folder is in use, or holds a run with other options, or with options that are not known.
            CheckpointError: no checkpoint of the run that is there is whole.
            TrainingError: the folder cannot be read.
        """
        try:
            self.lock.refuse_if_taken()
            if force:
                return NEW
            seen = self.seen()
            if self._is_trial() and not options.values.trainer.fast_dev_run:
                return Start("new", seen=seen, replaces=True)
            finished = self._is_finished()
            point = None if finished else choose_resume_point(self.checkpoint, self.previous)
            if point is None and not finished:
                self._refuse_without_checkpoint()
                return Start("new", seen=seen)
            extends = self._compare(point, options)
            if finished and extends:
                point = choose_resume_point(self.checkpoint, self.previous)
                if point is None:
                    raise ConfigError(
                        f"{self.checkpoint} is missing, and the run there cannot go on without it ({extends[0]}): put "
                        f"a copy of it back, or start another run with --model.weights {self.weights}"
                    )
            return Start("finished" if finished and not extends else "unfinished", point, seen, extends=tuple(extends))
        except OSError as error:
            raise TrainingError(f"cannot read {self.root}: {error.strerror}; choose another --output") from error

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is something to go on from."""
        return self.checkpoint.exists() or self.previous.exists()

    def kept(self) -> str:
        """What an error says of it."""
        for path in (self.checkpoint, self.previous):
            with suppress(CheckpointError):
                return f"{read_resume_point(path)}, and the same command goes on from it"
        return "nothing was kept: no epoch was completed"

    def seen(self) -> object:
        """Changes whenever a run changes what the next one decides by."""
        statuses = [path.stat() if path.exists() else None for path in (self.checkpoint, self.previous, self.results)]
        return [(status.st_ino, status.st_size, status.st_mtime_ns) if status else None for status in statuses]

    def check(self) -> None:
        """Raises Stopped where the folder of a running run is gone, or another one is in its place."""
        if self.lock.held and not self.lock.in_place:
            raise Stopped(
                f"{self.root} was removed, renamed or replaced during the run, which ends here; if it was renamed, the "
                "same command with the new name as --output goes on from what it keeps"
            )

    def write(self, path: Path, content: bytes) -> None:
        """Writes a file of the run, whole or not at all.

        Raises:
            TrainingError: the disk does not take it.
            Stopped: the folder is gone.
        """
        self.check()
        write(path, content)

    def stored_options(self, point: ResumePoint) -> dict[str, Any]:
        """The options of the run that is there, as a recipe.

        Raises:
            ConfigError: they are not known.
        """
        stored = _mapping(point.options) if point.options is not None else None
        if stored is None and self.config.is_file():
            stored = _mapping(self.config.read_bytes())
        if stored is None:
            raise ConfigError(
                f"{self.config} is missing or damaged, and the options of the run are not known without it"
            )
        return stored

    def stored_batch_size(self) -> int | None:
        """Images a step of the run that is there; None where there is none."""
        stored = _mapping(self.config.read_bytes()) if self.config.is_file() else None
        data = (stored or {}).get("data")
        size = data.get("batch_size") if isinstance(data, Mapping) else None
        return size if isinstance(size, int) else None

    def _is_trial(self) -> bool:
        """Whether what is there is of a ``trainer.fast_dev_run``."""
        stored = _mapping(self.config.read_bytes()) if self.config.is_file() else None
        trainer = (stored or {}).get("trainer")
        return isinstance(trainer, Mapping) and bool(trainer.get("fast_dev_run"))

    def _is_finished(self) -> bool:
        """Whether there are results, and not those of an interrupted run."""
        if not self.results.exists():
            return False
        try:
            if isinstance(results := json.loads(self.results.read_bytes()), dict):
                return results.get("ended") != INTERRUPTED
        except ValueError:
            pass
        log.warning("%s is damaged and will be written again", self.results)
        return False

    def _refuse_without_checkpoint(self) -> None:
        """Raises ConfigError where a run got further than to where it might have been killed without a checkpoint.

        Or where Lightning has left one for SLURM, as with earlier versions, from which it would go on unasked.
        """
        if left := sorted(self.root.glob(FOR_SLURM)):
            raise ConfigError(
                f"{left[0]} is the checkpoint of a run whose options are not known: move it away, or --force to start "
                "afresh"
            )
        epochs = self.metrics.read_bytes().count(b"\n") - 1 if self.metrics.is_file() else 0
        if epochs > 1:
            raise ConfigError(
                f"{self.checkpoint} is missing, though {self.metrics.name} has {epochs} epochs of the run there: put a "
                "copy of it back, or --force to start afresh"
            )

    def _compare(self, point: ResumePoint | None, options: Options) -> list[str]:
        """What lets the run in this folder go on longer; ConfigError if it has other options, or unknown ones."""
        stored = _mapping(self.config.read_bytes()) if self.config.is_file() else None
        fault = f"{self.config} is {'damaged' if self.config.is_file() else 'missing'}"
        if point is not None and point.options is not None:  # its content is checked
            if stored is None:
                log.warning("%s: written again from %s", fault, point.path)
            stored = _mapping(point.options)
        if stored is None:
            raise ConfigError(
                f"{fault}, and the options of the run there are not known without it: restore it (the same command "
                f"with --print_config shows it), or --force to start afresh"
            )
        every, absent = _differences(stored, _mapping(options.to_yaml()) or {}, _mapping(options.defaults()) or {})
        free = [change for change in every if _is_free(change)]
        extends = [change for change in every if _is_raised(change)]
        different = [str(change) for change in every if change not in free + extends]
        if different:
            raise ConfigError(
                f"{self.root} holds a run with other options ({'; '.join(different[:3])}"
                f"{'; ...' if len(different) > 3 else ''}): choose another --output, or --force to start afresh there"
            )
        if absent:
            log.warning("the run in %s was begun without %s: going on with the default", self.root, ", ".join(absent))
        if free:
            log.info("going on with other options that do not change the run: %s", "; ".join(map(str, free)))
        return list(map(str, extends))

    def tidy(self) -> None:
        """Removes what was being written when a run was killed."""
        for path in self.root.glob("*.part"):
            path.unlink()

    def clear(self) -> None:
        """Removes what an earlier run left, and nothing else."""
        self.tidy()
        ours = (self.results, self.checkpoint, self.previous, self.config, self.versions, self.metrics, self.weights)
        for path in (*ours, self.report, *self.root.glob(FOR_SLURM)):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.tensorboard, ignore_errors=True)

    def close(self) -> None:
        """Gives the lock back, and removes the folder if nothing is in it."""
        if self.lock.held:
            self.lock.release()
            with suppress(OSError):  # there is something in it, or it is not there
                self.root.rmdir()


def _mapping(content: str | bytes) -> dict[str, Any] | None:
    """Parses YAML; None if it is not a mapping."""
    try:
        found = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found else None


class Change(NamedTuple):
    """An option that has another value than in the run that is there."""

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name}: {self.before}, now {self.now}"


def _is_free(change: Change) -> bool:
    sharded = change.name == "trainer.strategy" and "fsdp" in f"{change.before} {change.now}".lower()
    return change.name in FREE and not sharded


def _is_raised(change: Change) -> bool:
    if change.name not in LIMITS:
        return False
    before, now = (_limit(change.name, value) for value in (change.before, change.now))
    return now > before


def _limit(name: str, value: Any) -> float:
    if value in (None, -1):
        return math.inf
    return seconds(value) if name == "trainer.max_time" else float(value)


def seconds(time: Any) -> float:
    """The seconds of a ``trainer.max_time``: ``"DD:HH:MM:SS"``, a timedelta, or its arguments.

    Raises:
        ConfigError: it is none of these.
    """
    try:
        if isinstance(time, str):
            days, hours, minutes, rest = (int(part) for part in time.strip().split(":"))
            time = timedelta(days=days, hours=hours, minutes=minutes, seconds=rest)
        length: timedelta = timedelta(**time) if isinstance(time, Mapping) else time
        return length.total_seconds()
    except (ValueError, TypeError, AttributeError, OverflowError):
        raise ConfigError(
            f'trainer.max_time={time} must be like "00:12:30:00", days, hours, minutes, seconds'
        ) from None


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = ""
) -> tuple[list[Change], list[str]]:
    """Options with other values, and new ones that have their default."""
    different: list[Change] = []
    absent: list[str] = []
    for key in sorted(old.keys() | new.keys(), key=str):
        before, now, default = old.get(key), new.get(key), defaults.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            inner = _differences(before, now, default if isinstance(default, Mapping) else {}, f"{prefix}{key}.")
            different += inner[0]
            absent += inner[1]
        elif key not in old and key in defaults and now == default:
            absent.append(f"{prefix}{key}")
        elif before != now:
            different.append(Change(f"{prefix}{key}", before, now))
    return different, absent
