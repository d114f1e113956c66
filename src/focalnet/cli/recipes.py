"""``focalnet recipes``; finds and reads recipes, which are YAML files of options."""

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
    """Lists the training recipes.

    The comment at the top of each file gives the command, hardware, expected metrics and source.
    """
    glob = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    names = [name for name in list_recipes() if fnmatch.fnmatch(name, glob)]
    if not names:
        hint = did_you_mean(pattern.strip("*"), list_recipes())
        raise UnknownName(f'no recipe matches "{pattern}"{hint}; "focalnet recipes" lists all')
    width = max(map(len, names))
    for name in names:
        say(f"{name:<{width}}  {title(name)}")


def title(name: str) -> str:
    """The title of a recipe of ``list_recipes()``: the first line of its file."""
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
    same_stem = [known for known in names if Path(known).name == name]
    hint = f'; did you mean "{same_stem[0]}"?' if same_stem else did_you_mean(name, names)
    raise UnknownName(f'no recipe "{name}"{hint or ". There are: " + ", ".join(names)}')


def read_recipe(path: Path, *, read_before: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Reads a recipe. Where it has ``base: other.yaml``, it inherits the options of that file in the same folder.

    Args:
        path: of the YAML file.
        read_before: recipes that inherit from this one.

    Raises:
        ConfigError: the file cannot be read, is not a mapping of options, or inherits from itself.
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
        raise ConfigError(f"the recipe {path} inherits from itself; correct its option base")
    if len(read_before) == MOST_BASES:
        raise ConfigError(f"the recipe {path} inherits from more than {MOST_BASES} others")
    return merge(read_recipe(base, read_before=(path, *read_before)), content)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` updated with ``changes``; nested mappings are merged, not replaced."""
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
        for name in reversed(key.split(".")):
            value = {name: value}
        tree = merge(tree, value)
    return tree
