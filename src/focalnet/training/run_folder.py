"""The folder of a run: what is in it, and whether a command starts, continues or finds it finished.

``config.yaml`` (every option), ``versions.json``, ``last.ckpt`` (everything needed to go on), ``metrics.csv``
(one row an epoch), ``tensorboard/``, and at the end ``model.safetensors``, ``report.html`` and, last of all,
``results.json``: its presence means that the run is finished.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from focalnet import files
from focalnet.errors import ConfigError, TrainingError

State = Literal["new", "unfinished", "finished"]


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

    def state(self, config: str) -> State:
        """Compares with the run that is there.

        Args:
            config: every option of the new run, as YAML.

        Raises:
            ConfigError: the folder holds a run with other options.
        """
        if not self.checkpoint.is_file() or not self.config.is_file():
            return "new"  # whatever began here left nothing to lose
        if different := _differences(yaml.safe_load(self.config.read_text()), yaml.safe_load(config)):
            raise ConfigError(
                f"{self.root} holds a run with other options ({'; '.join(different[:3])}"
                f"{'; ...' if len(different) > 3 else ''}): choose another --output, or --force to start afresh there"
            )
        return "finished" if self.results.is_file() else "unfinished"

    def tidy(self) -> None:
        """Removes what was being written when a run was killed."""
        for path in self.root.glob("*.part"):
            path.unlink()

    def clear(self) -> None:
        """Removes what an earlier run left, and nothing else."""
        self.tidy()
        ours = (self.results, self.checkpoint, self.config, self.versions, self.metrics, self.weights, self.report)
        for path in ours:
            path.unlink(missing_ok=True)
        shutil.rmtree(self.tensorboard, ignore_errors=True)
        with suppress(OSError):  # there is more in it, or it is not there
            self.root.rmdir()


#: Writes a file of a run, whole or not at all.
write = partial(files.write, error=TrainingError)


class AtomicCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoint files, written by ``write``: Lightning's own do not survive a crash of the machine."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with buffer.getbuffer() as content:  # given back where writing fails, or Python warns later
            write(Path(path), content)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``["trainer.max_epochs: 5, now 10"]``."""
    differences: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            differences += _differences(before, now, f"{prefix}{key}.")
        elif before != now:
            differences.append(f"{prefix}{key}: {before}, now {now}")
    return differences
