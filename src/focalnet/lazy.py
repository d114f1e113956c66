"""Packages whose names are imported when first used: commands must not wait for what they do not need."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


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
