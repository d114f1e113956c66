"""Recipes: YAML files of options, found by name (``classification/digits``) or by path; ``focalnet recipes``."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from focalnet.cli.terminal import say
from focalnet.errors import ConfigError, UnknownName, did_you_mean
from focalnet.reading import MOST_BYTES, parse_yaml, read_text

HOME = Path(str(files("focalnet"))) / "recipes"
MOST_BASES = 20  # recipes that build on one another


def list_recipes() -> list[str]:
    """Names of the recipes that come with the library, e.g. ``"classification/digits"``."""
    return sorted(path.relative_to(HOME).with_suffix("").as_posix() for path in HOME.rglob("*.yaml"))


def recipes(
    pattern: Annotated[str, typer.Argument(help="Part of a name, or a pattern such as 'detection/*_3x'.")] = "*",
) -> None:
    """Lists the recipes: what is trained, on which data.

    The head of each file tells command, hardware, expected figures and their source.
    """
    wanted = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    names = [name for name in list_recipes() if fnmatch.fnmatch(name, wanted)]
    if not names:
        known = did_you_mean(pattern.strip("*"), list_recipes())
        raise UnknownName(f'no recipe matches "{pattern}"{known}; "focalnet recipes" lists all')
    width = max(map(len, names))
    for name in names:
        say(f"{name:<{width}}  {title(name)}")


def title(name: str) -> str:
    """The first line of a recipe of ``list_recipes()``, which says what it is for."""
    first, *_ = (HOME / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return first.removeprefix("# ").removesuffix(".")


def find_recipe(name: str) -> Path:
    """The file of a recipe.

    Args:
        name: one of ``list_recipes()``, or the path of a YAML file.

    Raises:
        UnknownName: there is no such recipe.
    """
    if name in list_recipes():
        return HOME / f"{name}.yaml"
    if Path(name).suffix in (".yaml", ".yml"):
        if not os.path.isfile(name):
            raise UnknownName(f"no recipe file {name}")
        return Path(name)
    names = list_recipes()
    short = [known for known in names if Path(known).name == name]
    hint = f'; did you mean "{short[0]}"?' if short else did_you_mean(name, names)
    raise UnknownName(f'no recipe "{name}"{hint or ". There are: " + ", ".join(names)}')


def read_recipe(path: Path, *, read_before: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Reads a recipe. ``base: other.yaml`` in it means: everything of that file beside it, except what is said here.

    Args:
        path: of the YAML file.
        read_before: the recipes that build on it.

    Raises:
        ConfigError: the file cannot be read, is not a mapping of options, or builds on itself.
    """
    try:
        content = parse_yaml(read_text(path, most_bytes=MOST_BYTES))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise ConfigError(f"cannot read the recipe {path}: {reason}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"the recipe {path} is not a mapping of options")
    if "base" not in content:
        return content
    name = content.pop("base")
    if not isinstance(name, str) or "\0" in name:
        raise ConfigError(f"the recipe {path}: base must be the path of another recipe")
    base = path.parent / name
    if any(os.path.realpath(base) == os.path.realpath(one) for one in (path, *read_before)):
        raise ConfigError(f"the recipe {path} builds on itself")
    if len(read_before) == MOST_BASES:
        raise ConfigError(f"the recipe {path} is below more than {MOST_BASES} others that build on it")
    return merge(read_recipe(base, read_before=(path, *read_before)), content)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes``, mapping by mapping."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """``{"trainer.max_epochs": 5}`` as ``{"trainer": {"max_epochs": 5}}``; a path becomes a string, as in a recipe."""
    tree: dict[str, Any] = {}
    for key, value in overrides.items():
        value = str(value) if isinstance(value, Path) else value
        for part in reversed(key.split(".")):
            value = {part: value}
        tree = merge(tree, value)
    return tree
