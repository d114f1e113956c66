"""Imports that wait: packages whose names are imported when first used, and modules that follow another library.

Commands must not wait for what they do not need.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_log = logging.getLogger(__name__)


def attributes(package: str, where: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package that does not import its public names itself.

    Args:
        package: its name.
        where: the module of each name, relative to the package.
    """

    def getattribute(name: str) -> Any:
        if name not in where:
            raise AttributeError(f'module "{package}" has no attribute "{name}"')
        return getattr(importlib.import_module(f"{package}.{where[name]}"), name)

    return getattribute


def follow(ours_of: Mapping[str, str]) -> None:
    """Imports a module of ours as soon as a module of another library has been imported, now or later.

    An error in our module is logged, so that the other library can be used without it.

    Args:
        ours_of: the name of our module for each name of theirs.
    """
    waiting = {theirs: ours for theirs, ours in ours_of.items() if theirs not in sys.modules}
    if waiting:
        sys.meta_path.insert(0, _Finder(waiting))
    for theirs, ours in ours_of.items():
        if theirs not in waiting:
            _import(ours)


class _Finder(MetaPathFinder):
    """Finds the modules of other libraries by the other finders, and has ours imported after them."""

    def __init__(self, ours_of: Mapping[str, str]) -> None:
        self.ours_of = ours_of

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.ours_of:
            return None
        finders = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in finders)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self.ours_of[fullname])
        return spec


class _Loader(Loader):
    """Loads a module of another library by its own loader, which it leaves to the module, and then imports ours."""

    def __init__(self, loader: Loader, ours: str) -> None:
        self.loader, self.ours = loader, ours

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        _import(self.ours)


def _import(ours: str) -> None:
    try:
        importlib.import_module(ours)
    except Exception as error:  # whatever it is, it must not take the other library from the user
        _log.warning("%s could not be imported: %s", ours, error)
