"""Where the metrics of a run are logged, by name: TensorBoard, CSV, Weights & Biases, MLflow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, WandbLogger

from focalnet.errors import ConfigError, require
from focalnet.training.event_log import EventLog
from focalnet.training.run_folder import RunFolder

#: Lightning logs into these projects, unless a recipe gives a logger with its own arguments.
PROJECT = "focalnet"


def check_installed(name: Any) -> None:
    """Raises MissingDependency where the package of a logger is not installed; before anything is written."""
    if name in ("wandb", "mlflow"):
        require(name, name)


def build_logger(name: str | bool | Logger | Sequence[Logger] | None, folder: RunFolder) -> Any:
    """What Lightning's trainer takes.

    Args:
        name: value of ``trainer.logger``; None and True mean TensorBoard.
        folder: of the run; the files of all loggers are in it, unless their own settings (``MLFLOW_TRACKING_URI``)
            name a server.

    Raises:
        ConfigError: the logger refuses to start.
    """
    if name in (None, True, "tensorboard"):
        return EventLog(folder)
    if name in (False, "none"):
        return False
    if name == "csv":
        return CSVLogger(folder.root, name="", version="csv")
    try:
        if name == "wandb":
            return WandbLogger(name=folder.root.name, project=PROJECT, save_dir=folder.root)
        if name == "mlflow":
            database = f"sqlite:///{folder.root.absolute() / 'mlflow.db'}"
            return MLFlowLogger(PROJECT, folder.root.name, os.environ.get("MLFLOW_TRACKING_URI") or database)
    except Exception as error:  # of a service that cannot be reached, or does not like its settings
        raise ConfigError(f"trainer.logger={name} cannot start: {' '.join(str(error).split())[:500]}") from error
    return name
