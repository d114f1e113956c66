"""The data with which a trained network is measured: a data set, with the options of the run where it needs them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from focalnet.errors import ConfigError, FocalNetError
from focalnet.reading import MOST_BYTES, parse_yaml, read_text
from focalnet.training.options import DEFAULT_TASK, TASKS, Options

SUFFIXES = (".yaml", ".yml")
#: What makes views and batches of images, and says nothing of where images and labels are.
OF_BATCHES = {
    "augmentation",
    "batch_size",
    "cache_in_memory",
    "num_workers",
    "ratios",
    "sampling",
    "seed",
    "val_batch_size",
}


def open_data(data: Path, output: str, **options: Any) -> Any:
    """The data module of a folder, or of the ``config.yaml`` of a run (or a recipe that names its data).

    Relative paths in the file are those of ``focalnet fit``: they start in the current folder.

    Args:
        data: the data set, or the YAML file, of which only ``task`` and ``data`` are looked at.
        output: the type of the results of the network that is measured.
        options: of the data module, which the file does not decide, e.g. how the network wants its images.

    Raises:
        ConfigError: the file cannot be read, is of another task, or its options cannot be.
        UnknownName: an option that does not exist.
    """
    task = "detection" if output == "instance" else output
    described = _described(data, task) if data.suffix in SUFFIXES else {"root": str(data)}
    return TASKS[task][1](**{**described, **options})


def _described(file: Path, task: str) -> dict[str, Any]:
    """What a YAML file says of data, as options of their module."""
    try:
        recipe = parse_yaml(read_text(file, most_bytes=MOST_BYTES))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise ConfigError(f"cannot read {file}: {reason}") from error
    section = recipe.get("data") if isinstance(recipe, dict) else None
    if not isinstance(section, dict):
        raise ConfigError(f"{file}: does not say what the data are; give the config.yaml of a run, or a folder of data")
    if (other := recipe.get("task", DEFAULT_TASK)) != task:
        raise ConfigError(f"{file}: is of the task {other}, and the model of {task}; give data of the model's task")
    options = Options({"task": task, "data": section, "trainer": {"max_epochs": 1}}).values.data
    return {name: value for name, value in vars(options).items() if name not in OF_BATCHES}


@contextmanager
def options_in_a_file(data: Path) -> Iterator[None]:
    """Adds to errors that name options of a recipe (``data.images``) how to give them without a recipe."""
    try:
        yield
    except FocalNetError as error:
        if data.suffix in SUFFIXES or not re.search(r"\bdata\.[a-z]", str(error)):
            raise
        raise type(error)(
            f"{error}; options of data are given in a YAML file (data: {{root: {data}, ...}}) in place of the folder"
        ) from error
