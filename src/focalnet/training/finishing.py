"""The end of a run: of its checkpoint it makes weights, their metrics, a report and, last, the results."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from focalnet import weights
from focalnet.card import ModelCard
from focalnet.errors import DataError
from focalnet.metrics.base import Evaluator, Metric
from focalnet.models.base import Model
from focalnet.training.callbacks import Stopwatch, headline
from focalnet.training.report import write_report
from focalnet.training.run_folder import COMPLETE, RunFolder
from focalnet.training.tasks.base import Data, Task
from focalnet.weights.adapters import merged
from focalnet.weights.checkpoint import HEADER, read_header

log = logging.getLogger(__name__)

#: Sentences for ``ended`` in ``results.json``.
REASONS = {
    "interrupted": "it was interrupted; the same command continues from here",
    "trainer.max_time": "trainer.max_time has passed; the same command with a higher limit continues from here",
    "trainer.max_steps": "trainer.max_steps was reached; the same command with a higher limit continues from here",
    "trainer.patience": (
        "the headline metric has not improved for trainer.patience validations; the same command with a higher one, or "
        "without, continues from here"
    ),
}


class Measurement(NamedTuple):
    """What a validation or a test gives."""

    metrics: list[Metric]
    images: int
    images_per_s: float
    details: Mapping[str, Any] = MappingProxyType({})
    rows: list[dict[str, Any]] | None = None  # of a table of all predictions, where they were to be kept

    def to_dict(self) -> dict[str, Any]:
        """The values by name, with ``images`` and ``images_per_s``, and what the evaluator's ``details`` give."""
        values = {metric.name: round(metric.value, 6) for metric in self.metrics}
        return {**values, "images": self.images, "images_per_s": self.images_per_s, **self.details}


class State:
    """What the checkpoint of a run says of it.

    Args:
        path: of the checkpoint.

    Attributes:
        card: of the network.
        rows: of ``metrics.csv``.
        epochs: complete ones.
        seconds: of training.
        best: epoch, updates and metrics of the best validation; None where none was made, or none was remembered.
        last: likewise of the last validation.
    """

    def __init__(self, path: Path) -> None:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        self._config, self.card = read_header(checkpoint[HEADER])
        self._tensors: dict[str, torch.Tensor] = checkpoint["state_dict"]
        progress, kept = (checkpoint["callbacks"].get(name, {}) for name in ("Progress", "Best"))
        self.rows: list[dict[str, float]] = progress.get("rows", [])
        self.epochs: int = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        self.updates: int = checkpoint["global_step"]
        seconds = self.rows[-1]["seconds"] if self.rows else 0.0
        self.seconds: float = progress["within"]["seconds"]["all"] if "within" in progress else seconds
        self.best: dict[str, Any] | None = kept.get("best")
        self.last: dict[str, Any] | None = kept.get("last")
        self._best_weights: dict[str, torch.Tensor] | None = kept.get("weights")

    def network(self, *, best: bool) -> Model[Any, Any]:
        """The trained network: the moving average, where there is one."""
        averaged = any(name.startswith("average.") for name in self._tensors)
        prefix = "average.module." if averaged else "network."
        state = {k.removeprefix(prefix): v for k, v in self._tensors.items() if k.startswith(prefix)}
        network: Model[Any, Any] = self._config.build()  # type: ignore[assignment]  # a task's is a whole network
        network.load_state_dict(merged(self._best_weights if best and self._best_weights is not None else state))
        return network

    def keeps_best(self, keep: str) -> bool:
        """Whether the weights of the best validation are to be kept, and there are any."""
        return keep == "best" and self.best is not None and self._best_weights is not None


def measure(
    trainer: pl.Trainer, task: Task, data: Data, network: Model[Any, Any], *, test: bool = False
) -> tuple[Measurement, Evaluator]:
    """Measures a network on the validation or test images; the task becomes one that holds it."""
    task.network = network
    stopwatch = Stopwatch()
    trainer.callbacks.append(stopwatch)  # type: ignore[attr-defined]
    try:
        (trainer.test if test else trainer.validate)(task, data, verbose=False)
    finally:
        trainer.callbacks.remove(stopwatch)  # type: ignore[attr-defined]
    evaluator = task.evaluator
    speed = round(evaluator.images / stopwatch.seconds, 1)
    return Measurement(task.metrics, evaluator.images, speed, evaluator.details(), evaluator.rows), evaluator


def finish(folder: RunFolder, path: Path, trainer: pl.Trainer, task: Task, data: Data, why: str) -> dict[str, Any]:
    """Measures the weights to keep and writes them, the report and, last, the results.

    Args:
        folder: of the run.
        path: of its checkpoint.
        trainer: that measures.
        task: without a network, made by the options of the run.
        data: of the run.
        why: the run has ended; see ``results.json``.

    Returns:
        The content of ``results.json``.
    """
    state = State(path)
    best = state.keeps_best(task.keep)
    if why != COMPLETE and trainer.is_global_zero:
        reason = REASONS.get(why, f"{why} has stopped it")
        done = f"{_counted(state.epochs, 'epoch')}, {_counted(state.updates, 'update')}"
        log.info("the run ends after %s: %s", done, reason)
    task.examples = True
    measurement, evaluator = measure(trainer, task, data, state.network(best=best))
    kept = {"weights": "best" if best else "last", "epoch": _epoch(state, best=best), "updates": _updates(state, best)}
    results = {**measurement.to_dict(), "epochs": state.epochs, "seconds": state.seconds, "ended": why, "kept": kept}
    if best and state.last is not None and state.last["updates"] != kept["updates"]:
        results["last"] = {name: round(value, 6) for name, value in state.last["metrics"].items()}
    sections = evaluator.report() if trainer.is_global_zero else []
    if (test := _test(trainer, task, data, state.network(best=best))) is not None:
        results["test"] = test.to_dict()
    if trainer.is_global_zero:
        network = state.network(best=best)
        network.card = card = _card(state.card, folder, measurement.metrics)
        folder.check()
        weights.save(network, folder.weights)
        write_report(folder, card, results, state.rows, measurement.metrics, sections)
        folder.write(folder.results, json.dumps(results, indent=2).encode())
        which = f"the best weights, of epoch {kept['epoch']}" if best else "the last weights"
        log.info("%s: %s of %d images", which, ", ".join(headline(measurement.metrics)), results["images"])
        if test is not None:
            log.info("test: %s of %d images", ", ".join(headline(test.metrics)), test.images)
        log.info("see %s", folder.report)
    return results


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _epoch(state: State, *, best: bool) -> int:
    return int(state.best["epoch"]) if best and state.best is not None else state.epochs


def _updates(state: State, best: bool) -> int:
    return int(state.best["updates"]) if best and state.best is not None else state.updates


def _card(card: ModelCard, folder: RunFolder, metrics: list[Metric]) -> ModelCard:
    values = {metric.name: round(metric.value, 2) for metric in metrics if metric.headline}
    architecture = card.name.partition(".")[0]
    return replace(card, name=f"{architecture}.{folder.root.name}", metrics=values)


def _test(trainer: pl.Trainer, task: Task, data: Data, network: Model[Any, Any]) -> Measurement | None:
    """Measures on the test images, if there are any besides those of validation; once in a run, at its end."""
    try:
        if not data.has_test_split():
            return None
        data.setup("test")
    except DataError as error:
        log.warning("the test split is not measured: %s", error)
        return None
    task.examples = False
    try:
        measurement, _ = measure(trainer, task, data, network, test=True)
    except MisconfigurationException as error:  # trainer.limit_test_batches is a share of less than one batch
        log.warning("the test split is not measured: %s", " ".join(str(error).split()))
        return None
    return measurement
