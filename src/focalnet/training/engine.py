"""A run from options to results: Lightning trains; around it, what it leaves to others.

That is: a folder that says by itself whether a run starts, goes on or is finished, and at the end the
weights, the measured results and a report.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import platform
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy

import focalnet
from focalnet import registry, weights
from focalnet.errors import ConfigError, FocalNetError, TrainingError
from focalnet.kernels import processor
from focalnet.kernels.memory import keep_freed_memory
from focalnet.metrics.base import Evaluator, Metric
from focalnet.models.base import Model
from focalnet.nn import FocalNetBlock
from focalnet.training.callbacks import Progress, StopAtNaN, Stopwatch, headline
from focalnet.training.checkpoints import AtomicCheckpoints
from focalnet.training.event_log import EventLog
from focalnet.training.failures import explained
from focalnet.training.options import Options
from focalnet.training.processes import Watch
from focalnet.training.report import write_report
from focalnet.training.run_folder import NEW, RunFolder, Start
from focalnet.training.stopping import SIGNALS, StopOnSignal, StopRequest, slurm_requeue_signal
from focalnet.training.tasks.base import Data, Task

log = logging.getLogger(__name__)


class Run(NamedTuple):
    """What Lightning needs for a run, and what ends it from outside."""

    task: Task
    data: Data
    trainer: pl.Trainer
    processes: Watch
    stop: StopRequest


class Measurement(NamedTuple):
    """What a validation gives."""

    metrics: list[Metric]
    images: int
    images_per_s: float
    details: Mapping[str, Any] = MappingProxyType({})
    rows: list[dict[str, Any]] | None = None  # of a table of all predictions, where they were to be kept

    def to_dict(self) -> dict[str, Any]:
        """The values by name, with ``images`` and ``images_per_s``, and what the evaluator's ``details`` give."""
        values = {metric.name: round(metric.value, 6) for metric in self.metrics}
        return {**values, "images": self.images, "images_per_s": self.images_per_s, **self.details}


def fit(recipe: Mapping[str, Any], folder: RunFolder, *, force: bool = False, trusted: bool = False) -> dict[str, Any]:
    """Trains; goes on where an interrupted run with the same options stopped.

    Args:
        recipe: nested options.
        folder: what the run leaves behind.
        force: start afresh, whatever is there.
        trusted: whether the recipe may import any code; see ``Options``.

    Returns:
        The content of ``results.json``: ``top1``, ``top5``, or ``box_ap``, ``mask_ap``, ..., or ``miou``, ...
        (percent), ``images``, ``images_per_s``, ``seconds``, ...
    """
    options = Options(recipe, trusted=trusted)
    with explained(folder):
        start = folder.start(options, force=force)
        if start.state == "finished":
            log.info("%s is finished; --force trains it again", folder.root)
            return dict(json.loads(folder.results.read_bytes()))
        keep_freed_memory()
        run = _build(options, folder, start, force=force)
        if start.point is not None:
            log.info("going on from %s", start.point.path)
        with run.processes.running(), run.stop.listening(), closing(folder):
            try:
                checkpoint = start.point.path if start.point else None
                run.trainer.fit(run.task, run.data, ckpt_path=checkpoint, weights_only=True)
            except BaseException:
                if folder.lock.in_place and not folder.has_checkpoint:
                    folder.clear()  # not one epoch done: nothing that is worth keeping, or could be gone on with
                raise
            epochs = options.values.trainer.max_epochs
            if run.trainer.current_epoch < epochs:
                raise TrainingError(f"stopped after {run.trainer.current_epoch} of {epochs} epochs")
            return _finish(run, options, folder)


class _Opening(pl.Callback):
    """Opens the folder of a run when data and network are there: one that cannot start leaves all as it was.

    That goes for the logger, too, which writes at once.
    """

    def __init__(self, folder: RunFolder, options: Options, start: Start, *, force: bool, log: bool) -> None:
        self.folder, self.options, self.start, self.force, self.log = folder, options, start, force, log

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        error: FocalNetError | None = None
        if trainer.is_global_zero:
            _advise(trainer)
            try:
                self._open()
            except FocalNetError as refusal:
                error = refusal
            except OSError as refusal:
                error = TrainingError(f"cannot write {self.folder.root}: {refusal.strerror}; choose another --output")
        error = trainer.strategy.broadcast(error)  # or the other processes wait for one that will not come
        if error is not None:
            raise error
        if trainer.strategy.broadcast(self.start.point) != self.start.point:
            raise TrainingError(
                f"the processes of this run see different files in {self.folder.root}, which must be on a file system "
                "that all of them share; what was written last may take a minute to appear: start the run again"
            )
        if self.log:
            trainer.logger = EventLog(self.folder)

    def _open(self) -> None:
        self.folder.lock.take()
        if not self.force and self.folder.seen() != self.start.seen:
            raise ConfigError(f"another run has just worked in {self.folder.root}: start this one again")
        self.folder.clear() if self.force else self.folder.tidy()
        self.folder.write(self.folder.config, self.options.to_yaml().encode())
        self.folder.write(self.folder.versions, json.dumps(versions(), indent=2).encode())


def validate(
    recipe: Mapping[str, Any], model: Model[Any, Any], *, trusted: bool = False, records: bool = False
) -> Measurement:
    """Measures a network on the validation images of a recipe, which may import any code if it is ``trusted``.

    With ``records``, the measurement has the rows of a table of all predictions.

    Raises:
        ConfigError: the network is of another task, or has other classes than the data.
    """
    with explained():
        run = _build(Options(recipe, trusted=trusted), None)
        family = registry.family_of(model)
        if run.task.name not in family.tasks:
            raise ConfigError(f"the recipe is not for a {type(model).__name__}: choose one of its task")
        run.data.class_order = model.class_names
        run.task.records = records
        run.data.setup("validate")
        known = model.config.num_classes
        if run.data.num_classes != known:
            raise ConfigError(f"the weights know {known} classes, the data has {run.data.num_classes}")
        with run.processes.running():
            measurement, _ = _measure(run, _for_task(run, model))
        return measurement


def _for_task(run: Run, model: Model[Any, Any]) -> Model[Any, Any]:
    """The network that gives what the task measures: the same one, or a twin with its weights."""
    config = registry.for_task(model.config, run.task.name, run.task.num_things(run.data))
    if config == model.config:
        return model
    twin = config.build()
    twin.load_state_dict(model.state_dict())
    twin.card = model.card
    return twin


def versions() -> dict[str, Any]:
    """What a run depends on besides its options."""
    packages = ("torch", "torchvision", "timm", "lightning")
    return {
        "focalnet": focalnet.__version__,
        "git": _git_revision(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "cpu": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _git_revision() -> str | None:
    """The commit of a source checkout, with ``-dirty`` where files differ from it; None for an installed package."""
    checkout = Path(focalnet.__file__).parents[2]
    if not (checkout / ".git").exists() or shutil.which("git") is None:
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def _build(
    options: Options,
    folder: RunFolder | None = None,
    start: Start = NEW,
    *,
    force: bool = False,
) -> Run:
    pl.seed_everything(options.values.seed_everything, workers=True, verbose=False)
    task, data, arguments = options.build()
    plugins = _listed(arguments["plugins"])
    requeue = slurm_requeue_signal(plugins)
    processes, stop = Watch(), StopRequest([*SIGNALS, *([requeue] if requeue else [])])
    arguments["callbacks"] = [*_listed(arguments["callbacks"]), processes]
    if folder is None:
        arguments |= {"logger": False, "enable_checkpointing": False}
    else:
        log = arguments["logger"] in (None, True)
        arguments["callbacks"] += [
            _Opening(folder, options, start, force=force, log=log),
            *(Progress(folder), StopAtNaN(), StopOnSignal(stop, folder, requeue), _checkpoints(folder)),
        ]
        from_previous = start.point is not None and start.point.path != folder.checkpoint
        plugins.append(AtomicCheckpoints(folder, options.to_yaml(), from_previous=from_previous))
        arguments["plugins"] = plugins
        arguments["default_root_dir"] = folder.root
        arguments["logger"] = False if log else arguments["logger"]
    if arguments["strategy"] == "fsdp":
        arguments["strategy"] = _sharded(task)
    try:
        return Run(task, data, pl.Trainer(**arguments), processes, stop)
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"trainer: {error}") from error


def _advise(trainer: pl.Trainer) -> None:
    """Says aloud what makes a run far slower than it need be."""
    on_cpu = trainer.strategy.root_device.type == "cpu"
    if on_cpu and trainer.precision.startswith("bf16") and not processor.computes_bfloat16():
        log.warning("this processor emulates bfloat16: --trainer.precision 32-true is twice as fast on it, or more")


def _sharded(task: Task) -> FSDPStrategy:
    """Fully sharded data parallel, block by block: within its forward, all weights of a block are whole."""
    if task.ema_decay is not None:
        raise ConfigError("model.ema_decay does not go with trainer.strategy=fsdp: the average would not be sharded")
    if task.optimizer_config.name == "muon":
        raise ConfigError("model.optimizer.name=muon does not go with trainer.strategy=fsdp: it needs whole matrices")
    return FSDPStrategy(auto_wrap_policy={FocalNetBlock})


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _checkpoints(folder: RunFolder) -> ModelCheckpoint:
    """One file, written over at the end of each epoch."""
    name = folder.checkpoint.stem
    return ModelCheckpoint(folder.root, name, save_on_train_epoch_end=True, enable_version_counter=False)


def _measure(run: Run, network: Model[Any, Any]) -> tuple[Measurement, Evaluator]:
    run.task.network = network
    stopwatch = Stopwatch()
    run.trainer.callbacks.append(stopwatch)  # type: ignore[attr-defined]
    run.trainer.validate(run.task, run.data, verbose=False)
    evaluator = run.task.evaluator
    speed = round(evaluator.images / stopwatch.seconds, 1)
    measurement = Measurement(run.task.metrics, evaluator.images, speed, evaluator.details(), evaluator.rows)
    return measurement, evaluator


def _kept_network(task: Task, folder: RunFolder) -> Model[Any, Any]:
    """What ``task.trained`` is, read from the checkpoint: there it is whole, however it was trained."""
    state = torch.load(folder.checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    prefix = "network." if task.average is None else "average.module."
    network = task.blank()
    network.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return network


def _finish(run: Run, options: Options, folder: RunFolder) -> dict[str, Any]:
    """Measures the final weights and writes them, the report and, last, the results."""
    untrained, *_ = options.build()  # for a strategy that shards, the trained task is of no more use
    untrained.examples = True
    measurement, evaluator = _measure(run._replace(task=untrained), _kept_network(run.task, folder))
    rows = next(c.rows for c in run.trainer.callbacks if isinstance(c, Progress))  # type: ignore[attr-defined]
    results = {**measurement.to_dict(), "epochs": run.trainer.max_epochs, "seconds": rows[-1]["seconds"]}
    if run.trainer.is_global_zero:
        network = _kept_network(run.task, folder)
        metrics = {metric.name: round(metric.value, 2) for metric in measurement.metrics if metric.headline}
        card = replace(run.task.card(run.data, folder.root.name), metrics=metrics)
        network.card = card
        folder.check()
        weights.save(network, folder.weights)
        write_report(folder, card, results, rows, measurement.metrics, evaluator.report())
        folder.write(folder.results, json.dumps(results, indent=2).encode())
        log.info("%s of %d images; see %s", ", ".join(headline(measurement.metrics)), results["images"], folder.report)
    return results
