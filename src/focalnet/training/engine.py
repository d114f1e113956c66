"""A run from options to results: Lightning trains; around it, what it leaves to others.

That is: a folder that says by itself whether a run starts, goes on or is finished, and at the end the
weights, the measured results and a report.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy

import focalnet
from focalnet import registry
from focalnet.data.readers.classes import other_class_names, other_numbering
from focalnet.errors import ConfigError, DataError, FocalNetError, TrainingError
from focalnet.kernels import processor
from focalnet.kernels.memory import keep_freed_memory
from focalnet.models.base import Model
from focalnet.nn import FocalNetBlock
from focalnet.training.callbacks import Progress, ReturnFreedMemory, StopAtNaN
from focalnet.training.checkpoints import AtomicCheckpoints, choose_resume_point
from focalnet.training.failures import explained
from focalnet.training.finishing import Measurement, finish, measure
from focalnet.training.keeping import Best
from focalnet.training.loggers import build_logger, check_installed
from focalnet.training.options import OWN_TRAINER_OPTIONS, Options
from focalnet.training.probe import Probe, automatic_batch_size
from focalnet.training.processes import Watch
from focalnet.training.progress import Bar, is_watched
from focalnet.training.run_folder import COMPLETE, INTERRUPTED, NEW, RunFolder, Start, seconds
from focalnet.training.stopping import (
    SIGNALS,
    Ended,
    Limits,
    PeriodicCheckpoints,
    StopOnSignal,
    StopRequest,
    slurm_requeue_signal,
)
from focalnet.training.tasks.base import Data, Task

log = logging.getLogger(__name__)


class Run(NamedTuple):
    """What Lightning needs for a run, and what ends it from outside."""

    task: Task
    data: Data
    trainer: pl.Trainer
    processes: Watch
    stop: StopRequest


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
    with explained(folder):
        options = Options(_with_batch_size(recipe, folder, trusted=trusted), trusted=trusted)
        start = folder.start(options, force=force)
        if start.state == "finished":
            log.info("%s is finished; --force trains it again", folder.root)
            return dict(json.loads(folder.results.read_bytes()))
        keep_freed_memory()
        run = _build(options, folder, start, force=force)
        if start.point is not None:
            log.info("going on from %s", start.point.path)
        with run.processes.running(), run.stop.listening(), closing(folder):
            why = COMPLETE
            try:
                checkpoint = start.point.path if start.point else None
                run.trainer.fit(run.task, run.data, ckpt_path=checkpoint, weights_only=True)
                if run.trainer.current_epoch < (run.trainer.max_epochs or 0):
                    why = stopping_callback(run.trainer)
            except Ended as ended:
                why = ended.why
            except BaseException:
                if folder.lock.in_place and not folder.has_checkpoint:
                    folder.clear()  # not one epoch done: nothing that is worth keeping, or could be gone on with
                raise
            untrained, *_ = options.build()  # for a strategy that shards, the trained task is of no more use
            results = finish(folder, folder.checkpoint, run.trainer, untrained, run.data, why)
            if run.stop.name == "SIGINT":
                raise KeyboardInterrupt
            return results


def _with_batch_size(recipe: Mapping[str, Any], folder: RunFolder, *, trusted: bool) -> Mapping[str, Any]:
    """The recipe with a number in place of ``data.batch_size=auto``; an interrupted run keeps the one it has."""
    data = recipe.get("data")
    if not isinstance(data, Mapping) or data.get("batch_size") != "auto":
        return recipe
    if (stored := folder.stored_batch_size()) is not None:
        return {**recipe, "data": {**data, "batch_size": stored}}
    task, opened, arguments = Options({**recipe, "data": {**data, "batch_size": 1}}, trusted=trusted).build()
    gpu = torch.cuda.is_available() and arguments["accelerator"] != "cpu"
    opened.setup("fit")
    size = automatic_batch_size(task, opened, torch.device("cuda" if gpu else "cpu"))
    devices = arguments["devices"] if isinstance(arguments["devices"], int) else 1
    size *= max(devices, 1) if gpu else 1
    log.info("data.batch_size is %d, which should fit into memory", size)
    return {**recipe, "data": {**data, "batch_size": size}}


def finish_run(folder: RunFolder, *, trusted: bool = False) -> dict[str, Any]:
    """Makes weights, report and results of a run that has not come to its end, by its last checkpoint.

    Args:
        folder: of the run.
        trusted: whether its options may import any code; see ``Options``.

    Returns:
        The content of ``results.json``.

    Raises:
        ConfigError: there is no run, or it is finished, or another process works in the folder.
        CheckpointError: none of its checkpoints is whole.
    """
    with explained(folder):
        folder.lock.refuse_if_taken()
        if (point := choose_resume_point(folder.checkpoint, folder.previous)) is None:
            raise ConfigError(f"{folder.root} has no {folder.checkpoint.name}: there is no run to finish")
        options = Options(folder.stored_options(point), trusted=trusted)
        if folder.start(options).state == "finished":
            raise ConfigError(f"{folder.root} is finished: {folder.results} has its results")
        run = _build(options)
        with run.processes.running(), closing(folder):
            folder.lock.take()
            run.data.setup("fit")  # the classes, and what is held out, are those of training
            return finish(folder, point.path, run.trainer, run.task, run.data, INTERRUPTED)


class _Opening(pl.Callback):
    """Opens the folder of a run when data and network are there: one that cannot start leaves all as it was.

    That goes for the logger, too, which writes at once.
    """

    def __init__(self, folder: RunFolder, options: Options, start: Start, *, force: bool, logger: str | None) -> None:
        self.folder, self.options, self.start, self.force, self.logger = folder, options, start, force, logger

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
        if self.logger:
            trainer.logger = build_logger(self.logger, self.folder)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.start.extends:  # the rate of the next update was that of the shorter run
            for scheduler in (entry.scheduler for entry in trainer.lr_scheduler_configs):
                _set_rates(scheduler)
            extends = "; ".join(self.start.extends)
            reschedules = any(name in extends for name in ("trainer.max_epochs", "trainer.max_steps"))
            rates = "; the learning rate follows the schedule of the longer run" if reschedules else ""
            log.info("extending the run (%s)%s", extends, rates)

    def _open(self) -> None:
        self.folder.lock.take()
        if not self.force and self.folder.seen() != self.start.seen:
            raise ConfigError(f"another run has just worked in {self.folder.root}: start this one again")
        self.folder.clear() if self.force or self.start.replaces else self.folder.tidy()
        self.folder.results.unlink(missing_ok=True)  # they would be those of the shorter run
        self.folder.write(self.folder.config, self.options.to_yaml().encode())
        self.folder.write(self.folder.versions, json.dumps(versions(), indent=2).encode())


def _set_rates(scheduler: Any) -> None:
    """Gives an optimizer the learning rates that its scheduler has for the next update."""
    rates = zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    for group, base, factor in rates:
        group["lr"] = base * factor(scheduler.last_epoch)


def validate(
    recipe: Mapping[str, Any],
    model: Model[Any, Any],
    *,
    trusted: bool = False,
    test: bool = False,
    records: bool = False,
) -> Measurement:
    """Measures a network on the validation images of a recipe, which may import any code if it is ``trusted``.

    Args:
        recipe: nested options.
        model: the network.
        trusted: see ``Options``.
        test: measure on the test images instead.
        records: whether the measurement has the rows of a table of all predictions.

    Raises:
        ConfigError: the network is of another task, or has other classes than the data.
        DataError: there is no test split.
    """
    with explained():
        run = _build(Options(recipe, trusted=trusted), None)
        family = registry.family_of(model)
        if run.task.name not in family.tasks or not model.config.is_trained_for(run.task.name):
            kind = f"{type(model).__name__} for {model.config.output}"
            raise ConfigError(
                f"the recipe is for {run.task.name}, the weights are of a {kind}: choose a recipe for their task"
            )
        run.data.class_order = model.class_names
        run.task.records = records
        run.data.setup("validate")
        if test:
            if not run.data.has_test_split():
                raise DataError("the data has no test split; focalnet validate measures on the validation split")
            run.data.setup("test")
        known = model.config.num_classes
        if run.data.num_classes != known:
            raise ConfigError(f"the weights know {known} classes, the data has {run.data.num_classes}")
        _check_numbering(run, model)
        with run.processes.running():
            measurement, _ = measure(run.trainer, run.task, run.data, _for_task(run, model), test=test)
        return measurement


def _check_numbering(run: Run, model: Model[Any, Any]) -> None:
    """Raises ConfigError where a label means one class to the network and another to the data; warns of other names."""
    known, names = model.class_names, run.data.class_names
    if not known:
        return
    if why := other_numbering(known, names):
        raise ConfigError(
            f"{why}, so the metrics would be wrong: number the classes of the data as the weights do "
            "(data.class_map of folders, data.class_names and data.label_map of label maps, ids of annotations)"
        )
    if why := other_class_names(known, names):
        log.warning("%s: they are compared by number; see that both number the same classes", why)
    things = run.task.num_things(run.data)
    if model.config.output == run.task.name == "panoptic" and things != model.config.things:
        raise ConfigError(f"the weights know {model.config.things} classes of things, the data has {things}")


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
    arguments["callbacks"] = [*_listed(arguments["callbacks"]), processes, ReturnFreedMemory()]
    own = {name: arguments.pop(name) for name in OWN_TRAINER_OPTIONS}
    limits = _limits(arguments, own)
    task.max_steps = limits.max_steps
    if folder is None:
        arguments |= {"logger": False, "enable_checkpointing": False}
    else:
        named = own["logger"] in (None, True) or isinstance(own["logger"], str)
        check_installed(own["logger"])
        progress = Progress(folder)
        best = Best(copies=task.keep == "best")
        arguments["callbacks"] += [
            _Opening(folder, options, start, force=force, logger=(own["logger"] or "tensorboard") if named else None),
            *([Bar(progress)] if is_watched() else []),
            *(progress, Probe(tries=own["probe"]), StopAtNaN(), best, StopOnSignal(stop, folder, requeue, limits)),
            PeriodicCheckpoints(folder, own["checkpoint_updates"], own["checkpoint_minutes"]),
            _checkpoints(folder),
        ]
        from_previous = start.point is not None and start.point.path != folder.checkpoint
        plugins.append(AtomicCheckpoints(folder, options.to_yaml(), from_previous=from_previous))
        arguments["plugins"] = plugins
        arguments["default_root_dir"] = folder.root
        arguments["logger"] = False if named else own["logger"]
    if arguments["strategy"] == "fsdp":
        arguments["strategy"] = _sharded(task)
    try:
        trainer = pl.Trainer(**arguments)
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"trainer: {error}") from error
    _check_processes(trainer)
    return Run(task, data, trainer, processes, stop)


def _check_processes(trainer: pl.Trainer) -> None:
    """Raises ConfigError for more processes than cores: each takes the memory of a whole run."""
    most = max(os.cpu_count() or 1, 2)  # two are of use for trying on any machine
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > most:
        raise ConfigError(
            f"trainer.devices={trainer.num_devices} would start as many processes on {most} CPU cores: choose {most} "
            "or fewer, and trainer.num_nodes for several machines"
        )


def _limits(arguments: dict[str, Any], own: Mapping[str, Any]) -> Limits:
    """What ends a run early; what Lightning would do about it within an epoch could not be resumed.

    A ``fast_dev_run`` becomes a run of one epoch of so many batches: unlike Lightning's, it leaves weights and report.
    """
    max_steps, max_time = arguments.pop("max_steps"), arguments.pop("max_time")
    if batches := int(arguments.pop("fast_dev_run") or 0):
        arguments |= dict.fromkeys(("limit_train_batches", "limit_val_batches", "limit_test_batches"), batches)
        arguments |= {"max_epochs": 1, "check_val_every_n_epoch": 1, "val_check_interval": None}
    return Limits(
        max_steps=None if max_steps in (None, -1) else int(max_steps),
        max_seconds=None if max_time is None else seconds(max_time),
        patience=own["patience"],
    )


def stopping_callback(trainer: pl.Trainer) -> str:
    """The name of the callback that has ended a run, as ``"EarlyStopping"``."""
    stopped = [c for c in trainer.callbacks if getattr(c, "stopped_epoch", 0)]  # type: ignore[attr-defined]
    return type(stopped[0]).__name__ if stopped else "a callback"


def _advise(trainer: pl.Trainer) -> None:
    """Says aloud what makes a run far slower than it need be."""
    on_cpu = trainer.strategy.root_device.type == "cpu"
    if on_cpu and trainer.precision.startswith("bf16") and not processor.computes_bfloat16():
        log.warning("this processor emulates bfloat16: --trainer.precision 32-true is twice as fast on it, or more")


def _sharded(task: Task) -> FSDPStrategy:
    """Fully sharded data parallel, block by block: within its forward, all weights of a block are whole."""
    if task.ema_decay is not None:
        raise ConfigError("model.ema_decay cannot be combined with trainer.strategy=fsdp: averages are not sharded")
    if task.optimizer_config.name == "muon":
        raise ConfigError(
            "model.optimizer.name=muon cannot be combined with trainer.strategy=fsdp: it needs full matrices"
        )
    return FSDPStrategy(auto_wrap_policy={FocalNetBlock})


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _checkpoints(folder: RunFolder) -> ModelCheckpoint:
    """One file, written over at the end of each epoch."""
    name = folder.checkpoint.stem
    return ModelCheckpoint(folder.root, name, save_on_train_epoch_end=True, enable_version_counter=False)
