"""Options of a run: typed, checked and given defaults by the signatures of task, data and trainer.

jsonargparse, as ``LightningCLI`` sets it up, does the work; here its errors become one line each.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt
from lightning.pytorch.cli import LightningArgumentParser

from focalnet.data import ClassificationData, DetectionData, PanopticData, SemanticData
from focalnet.errors import ConfigError, FocalNetError, UnknownName, did_you_mean
from focalnet.training.tasks.base import Task
from focalnet.training.tasks.classification import ClassificationTask
from focalnet.training.tasks.detection import DetectionTask
from focalnet.training.tasks.panoptic import PanopticTask
from focalnet.training.tasks.semantic import SemanticTask

#: What a recipe's ``task`` chooses. Without one it is classification.
TASKS: dict[str, tuple[type[Task], type[pl.LightningDataModule]]] = {
    "classification": (ClassificationTask, ClassificationData),
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
# Lightning's and jsonargparse's own, and what follows from seed_everything.
NOT_OPTIONS = ("config", "print_config", "model.seed", "data.seed")


class Options:
    """Every option of a run, checked.

    Args:
        recipe: nested options, ``{"model": {...}, "data": {...}, "trainer": {...}, "seed_everything": 0}``, and
            ``task``, one of ``TASKS``; strings are converted to the option's type.

    Raises:
        UnknownName: an option that does not exist.
        ConfigError: a value that cannot be.
    """

    def __init__(self, recipe: Mapping[str, Any]) -> None:
        recipe = dict(recipe)
        self.task = str(recipe.pop("task", DEFAULT_TASK))
        if self.task not in TASKS:
            raise UnknownName(f'no task "{self.task}"{did_you_mean(self.task, TASKS)}; there are {", ".join(TASKS)}')
        self._parser = _parser(*TASKS[self.task])
        known = [a.dest for a in self._parser._actions if "help" not in a.dest and a.dest not in NOT_OPTIONS]
        for name in _names(recipe, known):
            if name not in known:
                raise UnknownName(f'no option "{name}"{_suggest(name, known)} --print_config shows all')
        try:
            self.values: Namespace = self._parser.parse_object(recipe)
        except (argparse.ArgumentError, TypeError, ValueError) as error:
            raise ConfigError(_one_line(str(error))) from error
        trainer = self.values.trainer
        if trainer.max_steps != -1 or (trainer.max_epochs or 0) < 1:
            raise ConfigError("a run is measured in epochs: trainer.max_epochs must be at least 1, max_steps left out")

    def to_yaml(self) -> str:
        """Every option with its value, in the form of a recipe."""
        text: str = self._parser.dump(self.values, skip_unset=False)
        return text if self.task == DEFAULT_TASK else f"task: {self.task}\n{text}"

    def defaults(self) -> str:
        """The same of a recipe that says nothing."""
        text: str = self._parser.dump(self._parser.get_defaults(), skip_unset=False, skip_validation=True)
        return text

    def build(self) -> tuple[Task, Any, dict[str, Any]]:
        """Returns the task, the data, and the arguments of the trainer."""
        try:
            built = self._parser.instantiate(self.values)
        except FocalNetError:
            raise
        except (ValueError, TypeError) as error:
            raise ConfigError(_one_line(str(error))) from error
        return built.model, built.data, dict(built.trainer)


def _parser(task: type[Task], data: type[pl.LightningDataModule]) -> LightningArgumentParser:
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_argument("--seed_everything", type=NonNegativeInt, default=0, help="Seed of everything random.")
    parser.add_lightning_class_args(pl.Trainer, "trainer")
    parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()})
    parser.add_lightning_class_args(task, "model")
    parser.add_lightning_class_args(data, "data")
    for room in ("model", "data"):
        parser.link_arguments("seed_everything", f"{room}.seed")
    return parser


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


def _suggest(name: str, known: list[str]) -> str:
    same_ending = [k for k in known if k.endswith(f".{name.rsplit('.', 1)[-1]}")]
    return f'; did you mean "{same_ending[0]}"?' if len(same_ending) == 1 else did_you_mean(name, known) or ";"


def _one_line(message: str) -> str:
    """The parser's account of a wrong value, which lists every type it tried, as one line."""
    key = re.search(r'[Kk]ey "([\w.]+)"', message)
    value = re.search(r"(?:Given value|Got value): *(.*)", message)
    if key and value:
        allowed = re.findall(r"Expected an? (.*?)\.? *(?:Got value|$)", message, re.MULTILINE)
        expected = f": expected {' or '.join(map(_type_name, allowed))}" if allowed else ""
        return f'option {key[1]} cannot be "{value[1].strip()}"{expected}'
    return " ".join(message.split())


def _type_name(text: str) -> str:
    text = re.sub(r"<class '([\w.]+)'>", r"\1", text)
    return text.replace("typing.Literal", "one of ").replace("NoneType", "null").strip()
