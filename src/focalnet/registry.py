"""Every family of networks: those of the subpackages of ``focalnet.models``, and those from outside.

Another package offers its own by an entry point of the group ``focalnet.models``, which names a module with
``FAMILIES``; code that is not installed calls ``register``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import pkgutil
import warnings
from typing import Any

from focalnet import models
from focalnet.errors import ConfigError, UnknownName, did_you_mean
from focalnet.models.base import Model, ModelConfig, ModelFamily, TaskName

_registered: list[ModelFamily] = []


def register(family: ModelFamily) -> None:
    """Adds a family: its networks can then be created, trained, saved, loaded and used like all others.

    Raises:
        ConfigError: its name, its kind of file, its configuration or one of its networks is taken.
    """
    for other in families():
        taken = {family.name, *family.variants} & {other.name, *other.variants}
        if taken or family.file_kind == other.file_kind or family.config is other.config:
            what = f'"{min(taken)}"' if taken else f'its kind of file or its configuration ("{family.file_kind}")'
            raise ConfigError(f'family "{family.name}": {what} is that of the family "{other.name}" already')
    _registered.append(family)


def unregister(name: str) -> None:
    """Takes ``register`` back.

    Raises:
        UnknownName: no such family was registered.
    """
    for family in _registered:
        if family.name == name:
            _registered.remove(family)
            return
    raise UnknownName(f'no family "{name}" was registered{did_you_mean(name, [f.name for f in _registered])}')


def families() -> tuple[ModelFamily, ...]:
    """All of them; the classifier first."""
    return (*_ours(), *_installed(), *_registered)


@functools.cache
def _installed() -> tuple[ModelFamily, ...]:
    """Those of other packages; a package that cannot be imported is left out with a warning."""
    found: list[ModelFamily] = []
    for entry in importlib.metadata.entry_points(group="focalnet.models"):
        try:
            found += entry.load().FAMILIES
        except Exception as error:  # whatever a foreign module does when it is imported
            reason = f"{type(error).__name__}: {error}"
            warnings.warn(f'the networks of "{entry.name}" are left out: {reason}', UserWarning, stacklevel=2)
    return tuple(found)


@functools.cache
def _ours() -> tuple[ModelFamily, ...]:
    packages = [info.name for info in pkgutil.iter_modules(models.__path__) if info.ispkg]
    found = [family for name in packages for family in importlib.import_module(f"focalnet.models.{name}").FAMILIES]
    return tuple(sorted(found, key=lambda family: _ORDER.index(family.name) if family.name in _ORDER else len(_ORDER)))


#: In which order listings have them.
_ORDER = ("classifier", "mask_rcnn", "cascade_mask_rcnn", "atss", "sparse_rcnn", "upernet", "mask2former")


def names() -> list[str]:
    """Every published network."""
    return [name for family in families() for name in family.variants]


def family_of(network: str | Model[Any, Any] | ModelConfig) -> ModelFamily:
    """The family of a published network's name, of a network, or of a configuration.

    Raises:
        UnknownName: there is none.
    """
    if isinstance(network, str):
        for family in families():
            if network in family.variants:
                return family
        raise UnknownName(f'no model "{network}"{did_you_mean(network, names())}; "focalnet models" lists all')
    config = network if isinstance(network, ModelConfig) else network.config
    for family in families():
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
        ConfigError: an option that neither has.
    """
    return family_of(name).configure(name, **options)


def for_task(config: ModelConfig, task: TaskName, num_things: int | None = None, name: str = "") -> ModelConfig:
    """The configuration of the network that a task trains or measures.

    Args:
        config: of any network.
        task: what it is for.
        num_things: so many of the first classes are objects, the others stuff; None as before.
        name: what messages call the network.

    Raises:
        ConfigError: the network cannot do this.
    """
    family = family_of(config)
    if task not in family.tasks:
        able = [other.name for other in families() if task in other.tasks]
        what = name or f"a {family.name}"
        raise ConfigError(f"{what} is not a network for {task}: there are {', '.join(able)}")
    return config.for_task(task, num_things)
