"""The registry of network families: the subpackages of ``focalnet.models``, and families of other packages.

An installed package adds families with an entry point of the group ``focalnet.models``, which names a module with
``FAMILIES``; other code calls ``register``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import pkgutil
import warnings
from collections.abc import Iterator
from typing import Any

from focalnet import models
from focalnet.errors import ConfigError, UnknownName, did_you_mean
from focalnet.models.base import Model, ModelConfig, ModelFamily, TaskName

_registered: list[ModelFamily] = []


def register(family: ModelFamily) -> None:
    """Adds a family, whose networks can then be created, trained, saved, loaded and used like all others.

    Raises:
        ConfigError: another family has its name, its file kind, its configuration or one of its networks.
    """
    for other in families():
        taken = {family.name, *family.variants} & {other.name, *other.variants}
        if taken or family.file_kind == other.file_kind or family.config is other.config:
            what = f'"{min(taken)}"' if taken else f'its file kind or its configuration ("{family.file_kind}")'
            raise ConfigError(f'family "{family.name}": {what} is already registered by the family "{other.name}"')
    _registered.append(family)


def unregister(name: str) -> None:
    """Removes a registered family.

    Raises:
        UnknownName: no such family was registered.
    """
    for family in _registered:
        if family.name == name:
            _registered.remove(family)
            return
    raise UnknownName(f'no family "{name}" was registered{did_you_mean(name, [f.name for f in _registered])}')


def each() -> Iterator[ModelFamily]:
    """Yields all families, the classifier first; the packages of ours are imported one after another."""
    for package in _packages():
        yield from importlib.import_module(f"focalnet.models.{package}").FAMILIES
    yield from _installed()
    yield from _registered


def families() -> tuple[ModelFamily, ...]:
    """All families, the classifier first."""
    return tuple(each())


@functools.cache
def _installed() -> tuple[ModelFamily, ...]:
    """Families of other packages; a package that cannot be imported is left out with a warning."""
    installed: list[ModelFamily] = []
    for entry in importlib.metadata.entry_points(group="focalnet.models"):
        try:
            installed += entry.load().FAMILIES
        except Exception as error:  # a foreign module can raise anything when it is imported
            reason = f"{type(error).__name__}: {error}"
            warnings.warn(f'the networks of "{entry.name}" are left out: {reason}', UserWarning, stacklevel=2)
    return tuple(installed)


#: The order in which packages are listed and imported; others follow.
_ORDER = ("classifier", "rcnn", "atss", "sparse_rcnn", "upernet", "mask2former")


@functools.cache
def _packages() -> tuple[str, ...]:
    names = [info.name for info in pkgutil.iter_modules(models.__path__) if info.ispkg]
    return tuple(sorted(names, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER)))


def names() -> list[str]:
    """Names of all published networks."""
    return [name for family in families() for name in family.variants]


def family_of(network: str | Model[Any, Any] | ModelConfig) -> ModelFamily:
    """The family of a network, of its configuration, or of a published name.

    Raises:
        UnknownName: no family has it.
    """
    if isinstance(network, str):
        for family in each():
            if network in family.variants:
                return family
        raise UnknownName(f'no model "{network}"{did_you_mean(network, names())}; "focalnet models" lists all')
    config = network if isinstance(network, ModelConfig) else network.config
    for family in each():
        if type(config) is family.config:
            return family
    raise UnknownName(f"no family of networks has a {type(config).__name__}: focalnet.registry.register adds one")


def configure(name: str, **options: Any) -> ModelConfig:
    """The configuration of a published network.

    Args:
        name: one of ``names()``.
        options: fields of its configuration, or of its backbone's.

    Raises:
        UnknownName: no such network.
        ConfigError: an option is a field of neither.
    """
    return family_of(name).configure(name, **options)


def for_task(config: ModelConfig, task: TaskName, num_things: int | None = None, name: str = "") -> ModelConfig:
    """The configuration of a network for a task.

    Args:
        config: of any network.
        task: the task to train or evaluate.
        num_things: this many of the first classes are things, the others stuff; None keeps the number.
        name: of the network in messages.

    Raises:
        ConfigError: the network does not support the task.
    """
    family = family_of(config)
    if task not in family.tasks:
        able = [other.name for other in families() if task in other.tasks]
        what = name or f"a {family.name}"
        raise ConfigError(f"{what} is not a network for {task}; choose one of {', '.join(able)}")
    return config.for_task(task, num_things)
