"""Options of a run: typed, checked and given defaults by the signatures of task, data and trainer.

jsonargparse, as ``LightningCLI`` sets it up, does the work; here its errors become one line each.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import inspect
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
from jsonargparse import Namespace, _common, set_parsing_settings
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from focalnet.data import ClassificationData, DetectionData, MultiLabelData, PanopticData, SemanticData
from focalnet.errors import ConfigError, FocalNetError, UnknownName, did_you_mean
from focalnet.reading import parse_yaml
from focalnet.training.tasks.base import Task
from focalnet.training.tasks.classification import ClassificationTask
from focalnet.training.tasks.detection import DetectionTask
from focalnet.training.tasks.multilabel import MultiLabelTask
from focalnet.training.tasks.panoptic import PanopticTask
from focalnet.training.tasks.semantic import SemanticTask

#: What a recipe's ``task`` chooses. Without one it is classification.
TASKS: dict[str, tuple[type[Task], type[pl.LightningDataModule]]] = {
    "classification": (ClassificationTask, ClassificationData),
    "multilabel": (MultiLabelTask, MultiLabelData),
    "detection": (DetectionTask, DetectionData),
    "semantic": (SemanticTask, SemanticData),
    "panoptic": (PanopticTask, PanopticData),
}
DEFAULT_TASK = "classification"

# What differs from Lightning's own defaults: our data module shards by itself, and we report our own way.
TRAINER_DEFAULTS = {
    "use_distributed_sampler": False,
    "num_sanity_val_steps": 0,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 10,
}
#: Options of the trainer that Lightning does not have: type, default, help.
OWN_TRAINER_OPTIONS: dict[str, tuple[Any, Any, str]] = {
    "patience": (
        PositiveInt | None,
        None,
        "End after so many validations in a row without a better headline metric.",
    ),
    "checkpoint_updates": (PositiveInt | None, None, "Write last.ckpt within epochs, too, every so many updates."),
    "checkpoint_minutes": (PositiveFloat | None, None, "Write last.ckpt within epochs, too, every so many minutes."),
    "probe": (bool, False, "Try a training step at the largest image size before the first epoch."),
    "logger": (
        Literal["tensorboard", "csv", "wandb", "mlflow", "none"] | bool | Logger | list[Logger] | None,
        None,
        "Where metrics are logged, by name; TensorBoard unless it says otherwise.",
    ),
}
# Lightning's and jsonargparse's own, and what follows from seed_everything.
NOT_OPTIONS = ("config", "print_config", "model.seed", "data.seed")
#: What stands in a recipe's help for an option that every run must give.
PLACEHOLDERS = {"data.root": "FOLDER"}


#: What a recipe may import by name, with all that is below it; besides, packages that register networks with us.
IMPORTABLE = (
    "focalnet",
    "timm",
    "torch.nn",
    "torch.optim",
    "torch.profiler",
    "torch.distributed.fsdp",  # arguments of Lightning's strategies
    "torch.distributed.algorithms",
    *(f"torch.{name}" for name in ("dtype", "float16", "bfloat16", "float32", "float64")),
    *(f"lightning.pytorch.{name}" for name in ("callbacks", "loggers", "strategies", "profilers", "plugins")),
    "lightning.pytorch.accelerators",
    "lightning.fabric.plugins",  # where some of those of lightning.pytorch.plugins are defined
)


class Described(NamedTuple):
    """An option: its dotted name, its value as JSON, and what it does."""

    name: str
    value: str
    text: str


class Options:
    """Every option of a run, checked.

    Args:
        recipe: nested options, ``{"model": {...}, "data": {...}, "trainer": {...}, "seed_everything": 0}``, and
            ``task``, one of ``TASKS``; strings are converted to the option's type.
        trusted: whether the recipe may import, and so run, any code of this machine; otherwise only ``IMPORTABLE``.

    Raises:
        UnknownName: an option that does not exist.
        ConfigError: a value that cannot be, or the name of a class that the recipe may not import.
    """

    def __init__(self, recipe: Mapping[str, Any], *, trusted: bool = False) -> None:
        self.trusted = trusted
        if not isinstance(recipe, Mapping):
            raise ConfigError(f"a recipe is a mapping of options, not {_short(recipe)}")
        recipe = dict(recipe)
        self.task = str(recipe.pop("task", DEFAULT_TASK))
        if self.task not in TASKS:
            near = did_you_mean(self.task, TASKS)
            raise UnknownName(f"no task {_short(self.task)}{near}; there are {', '.join(TASKS)}")
        self._parser = _parser(*TASKS[self.task], sub_configs=trusted)
        known = [a.dest for a in self._parser._actions if "help" not in a.dest and a.dest not in NOT_OPTIONS]
        recipe = _with_groups(recipe, known, paths=trusted)
        for name in _names(recipe, known):
            if name not in known:
                raise UnknownName(f"no option {_short(name)}{_suggest(name, known)} --print_config shows all")
        try:
            with _imports(trusted):
                self.values: Namespace = self._parser.parse_object(recipe)
        except (argparse.ArgumentError, TypeError, ValueError) as error:
            raise ConfigError(_one_line(str(error))) from error
        for name, value in vars(self.values.as_flat()).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"option {name} cannot be {value}: expected a finite number")
        trainer = self.values.trainer
        if (trainer.max_epochs or 0) < 1:
            raise ConfigError("a run is measured in epochs: trainer.max_epochs must be at least 1")
        if trainer.max_steps is not None and trainer.max_steps != -1 and trainer.max_steps < 1:
            raise ConfigError(f"trainer.max_steps={trainer.max_steps} must be at least 1, or -1 for no limit")
        for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
            limit = trainer[name]
            if limit is not None and limit <= 0:
                raise ConfigError(
                    f"trainer.{name}={limit} must be above 0: a run is trained and then measured; 1 is one batch"
                )

    def to_yaml(self) -> str:
        """Every option with its value, in the form of a recipe."""
        text: str = self._parser.dump(self.values, skip_unset=False)
        return text if self.task == DEFAULT_TASK else f"task: {self.task}\n{text}"

    def defaults(self) -> str:
        """The same of a recipe that says nothing."""
        text: str = self._parser.dump(self._parser.get_defaults(), skip_unset=False, skip_validation=True)
        return text

    def described(self) -> list[Described]:
        """Every option, with its value as in a recipe and what it does; those of the trainer last."""
        names = [action.dest for action in self._parser._actions if not action.dest.endswith(".help")]
        single = {name for name in names if not any(other.startswith(f"{name}.") for other in names)}
        values = _flattened(parse_yaml(self.to_yaml()), single)
        options = [
            Described(action.dest, json.dumps(values[action.dest]), _plain(action.help or ""))
            for action in self._parser._actions
            if action.dest in values and action.dest not in NOT_OPTIONS
        ]
        return sorted(options, key=lambda option: option.name.startswith("trainer."))

    def build(self) -> tuple[Task, Any, dict[str, Any]]:
        """Returns the task, the data, and the arguments of the trainer."""
        try:
            with _imports(self.trusted):
                built = self._parser.instantiate(self.values)
        except FocalNetError:
            raise
        except (ValueError, TypeError) as error:
            raise ConfigError(_one_line(str(error))) from error
        return built.model, built.data, dict(built.trainer)


def with_placeholders(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe whose options can be listed: with a placeholder for what its runs must give and it does not."""
    task, data = recipe.get("task", DEFAULT_TASK), recipe.get("data", {})
    if task not in TASKS or not isinstance(data, Mapping):
        return dict(recipe)  # which is told by ``Options``
    root = inspect.signature(TASKS[task][1]).parameters["root"]
    needed = {"root": PLACEHOLDERS["data.root"]} if root.default is root.empty else {}
    return {**recipe, "data": {**needed, **data}}


@contextmanager
def _imports(trusted: bool) -> Iterator[None]:
    """Within it, values may name what they may import, which is otherwise a setting of the whole process."""
    before = dict(_common.parsing_settings)  # there is no public way to take a setting back
    try:
        set_parsing_settings(instantiate_subclass_spec_in_any=False)
        if not trusted:
            networks = importlib.metadata.entry_points(group="focalnet.models")
            others = [entry.module.partition(".")[0] for entry in networks]
            set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[*IMPORTABLE, *others])
        yield
    finally:
        _common.parsing_settings.update(before)


def _parser(
    task: type[Task], data: type[pl.LightningDataModule], *, sub_configs: bool = False
) -> LightningArgumentParser:
    """The parser of all options; with ``sub_configs``, a value may also be the path of a file that holds it."""
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_argument("--seed_everything", type=NonNegativeInt, default=0, help="Seed of everything random.")
    for cls, name in ((pl.Trainer, "trainer"), (task, "model"), (data, "data")):
        build = cls is not pl.Trainer
        ours = set() if build else {"logger"}
        parser.add_class_arguments(cls, name, fail_untyped=False, instantiate=build, sub_configs=sub_configs, skip=ours)
    for option, (kind, default, text) in OWN_TRAINER_OPTIONS.items():
        parser.add_argument(f"--trainer.{option}", type=kind, default=default, help=text)
    parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()})
    for room in ("model", "data"):
        parser.link_arguments("seed_everything", f"{room}.seed")
    return parser


def _plain(text: str) -> str:
    """A part of a docstring as one line for a terminal, without the default, since the value is beside it."""
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"\1", text).replace("`", "")
    return re.sub(r" Default: \S+$", "", " ".join(text.split()))


def _flattened(options: Mapping[str, Any], known: Collection[str], prefix: str = "") -> dict[str, Any]:
    """Nested options by dotted name, down to the names that are known."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        if prefix + key in known:
            found[prefix + key] = value
        elif isinstance(value, Mapping):
            found |= _flattened(value, known, f"{prefix}{key}.")
    return found


def _names(options: Mapping[str, Any], known: list[str], prefix: str = "") -> Iterator[str]:
    """Dotted names of all given options; a mapping that is itself a value (``model.options``) is one option."""
    for key, value in options.items():
        name = f"{prefix}{key}"
        if any(k.startswith(f"{name}.") for k in known) and isinstance(value, Mapping) and "class_path" not in value:
            yield from _names(value, known, f"{name}.")
        elif isinstance(value, Mapping) and name not in known:
            yield from (f"{name}.{inner}" for inner in value)
        else:
            yield name


def _with_groups(options: Mapping[str, Any], known: list[str], prefix: str = "", *, paths: bool) -> dict[str, Any]:
    """The options with a mapping wherever a name stands for several; on a command line it may be written as text.

    Args:
        options: as given.
        known: every option by its dotted name.
        prefix: what stands before the names of ``options``.
        paths: whether the mapping may be in a file, which the parser opens.

    Raises:
        ConfigError: something else is there.
    """
    found = dict(options)
    for key, value in options.items():
        name = f"{prefix}{key}"
        if not any(k.startswith(f"{name}.") for k in known):
            continue
        given = value
        if isinstance(value, str):
            with suppress(ValueError):
                given = parse_yaml(value)
        if paths and isinstance(given, str):
            continue
        if not isinstance(given, Mapping):
            raise ConfigError(f"option {name} cannot be {_short(value)}: expected a mapping of options")
        found[key] = _with_groups(given, known, f"{name}.", paths=paths)
    return found


def _short(value: Any) -> str:
    return f'"{_cut(str(value), 200)}"'


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _suggest(name: str, known: list[str]) -> str:
    same_ending = [k for k in known if k.endswith(f".{name.rsplit('.', 1)[-1]}")]
    return f'; did you mean "{same_ending[0]}"?' if len(same_ending) == 1 else did_you_mean(name, known) or ";"


def _one_line(message: str) -> str:
    """The parser's account of a wrong value, which lists every type it tried, as one line."""
    if denied := re.search(r"Importing '([\w.]+)' is not allowed", message):
        return (
            f"the recipe names {denied[1]}, which is not among what a recipe may import ({', '.join(IMPORTABLE[:3])}, "
            "Lightning's callbacks, loggers, strategies, ...): --trust-recipe imports it, and so runs its code"
        )
    if missing := re.search(r"the following arguments are required: ([\w.]+)", message):
        return f"option {missing[1]} has no default: give it as --{missing[1]} {PLACEHOLDERS.get(missing[1], 'VALUE')}"
    key = re.search(r'[Kk]ey "([\w.]+)"', message)
    value = re.search(r"(?:Given value|Got value): *(.*)", message)
    if key and value:
        allowed = re.findall(r"Expected an? (.*?)\.? *(?:Got value|$)", message, re.MULTILINE)
        expected = f": expected {_cut(' or '.join(map(_type_name, allowed)), 400)}" if allowed else ""
        return f"option {key[1]} cannot be {_short(value[1].strip())}{expected}"
    return _cut(" ".join(message.split()), 1000)


def _type_name(text: str) -> str:
    text = re.sub(r"<class '([\w.]+)'>", r"\1", text)
    return text.replace("typing.Literal", "one of ").replace("NoneType", "null").strip()
