"""Recipes from anywhere: whatever is in one, it is read or refused in one line, and runs no code but what we offer."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from focalnet.cli.main import main
from focalnet.cli.recipes import read_recipe
from focalnet.errors import ConfigError, FocalNetError, UnknownName
from focalnet.training.options import Options
from tests.attacks.fuzz import damaged, fuzz, mutated

RECIPE: dict[str, Any] = {
    "model": {
        "architecture": "focalnet_nano",
        "options": {"drop_path_rate": 0.1, "depths": [1, 1, 1]},
        "ema_decay": 0.99,
        "optimizer": {"lr": 3e-3, "betas": [0.9, 0.99]},
        "schedule": {"warmup_epochs": 3},
        "mix": {"mixup": 0.1},
    },
    "data": {"format": "digits", "mean": [0.3, 0.3, 0.3], "augmentation": {"crop": "padded", "scale": [0.1, 1.0]}},
    "trainer": {
        "max_epochs": 1,
        "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "x"}},
        "callbacks": [{"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "loss"}}],
    },
}


def recipe(**trainer: Any) -> dict[str, Any]:
    changed = copy.deepcopy(RECIPE)
    changed["trainer"] |= trainer
    return changed


# --- The file --------------------------------------------------------------------------------------------------------


def aliases(times: int, levels: int, link: str) -> str:
    """Each level holds the one before so many times."""
    lines = ["a0: &a0 {k: v}"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} {{{link}: [{', '.join([f'*a{level - 1}'] * times)}]}}")
    return "\n".join(lines)


FILES: dict[str, bytes] = {
    "aliases of aliases": aliases(10, 12, "x").encode(),
    "merged aliases of aliases": aliases(10, 12, "<<").encode(),
    "an alias of itself": b"a: &a [*a]",
    "an alias of itself in a mapping": b"&a {b: *a}",
    "brackets without end": b"[" * 100_000,
    "braces without end": b"{a: " * 50_000,
    "dashes without end": b"- " * 50_000,
    "a number of 5000 digits": b"a: " + b"9" * 5000,
    "no date": b"a: 2020-99-99",
    "a wrong tag": b"a: !!int x",
    "a tag of a date": b"a: !!timestamp x",
    "an object of Python": b"a: !!python/object/apply:os.system [echo]",
    "a key that is a list": b"? [a]\n: 1",
    "a key that is a number": b"1: 2",
    "binary": bytes(range(256)) * 9,
    "no UTF-8": b"\xff\xfe\x00\xd8",
    "larger than any recipe": b"#" * (2 << 20),
    "a text": b"hello",
    "a list": b"[1, 2]",
    "nothing": b"",
    "a base that is a list": b"base: [a]",
    "a base with a zero byte": b'base: "a\\0b"',
    "a base that is a device": b"base: /dev/zero",
    "a base that is a folder": b"base: .",
    "a base with a name too long": b"base: " + b"x" * 5000,
    "a base that is itself": b"base: ./../attacked/recipe.yaml",
}


@pytest.mark.parametrize("attack", FILES)
def test_a_file_that_is_no_recipe(tmp_path: Path, attack: str, attacks: Callable[[int], None]) -> None:
    attacks(1)
    path = tmp_path / "attacked" / "recipe.yaml"
    path.parent.mkdir()
    path.write_bytes(FILES[attack])
    with pytest.raises(FocalNetError, match=r"the recipe|no option|cannot be") as error:
        Options(read_recipe(path))
    assert "\n" not in str(error.value)


def test_a_pipe_and_a_device_are_not_read(tmp_path: Path, attacks: Callable[[int], None]) -> None:
    attacks(3)
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "device.yaml").symlink_to("/dev/zero")
    for name in ("pipe.yaml", "device.yaml"):
        with pytest.raises(ConfigError, match=rf"{name}: is not a regular file"):
            read_recipe(tmp_path / name)
        assert main(["fit", str(tmp_path / name)]) == 2
    with pytest.raises(ConfigError, match=r"option trainer cannot be .*expected a mapping"):
        Options({**RECIPE, "trainer": str(tmp_path / "pipe.yaml")})


def test_a_chain_of_recipes_has_an_end(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / f"{number}.yaml").write_text(f"base: {number + 1}.yaml")
    with pytest.raises(ConfigError, match="inherits from more than 20 others"):
        read_recipe(tmp_path / "0.yaml")


def test_aliases_that_are_meant_so_are_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("a: &a {lr: 1}\nb: {<<: *a, x: 2}\nc: [*a, *a]")
    assert read_recipe(path) == {"a": {"lr": 1}, "b": {"lr": 1, "x": 2}, "c": [{"lr": 1}, {"lr": 1}]}


def test_damaged_recipes(tmp_path: Path, attacks: Callable[[int], None]) -> None:
    whole = yaml.safe_dump(RECIPE).encode()
    path = tmp_path / "recipe.yaml"

    def attempt(draw: random.Random) -> None:
        path.write_bytes(damaged(whole, draw))
        read_recipe(path)

    attacks(fuzz(attempt, named=str(path)))


# --- Options ---------------------------------------------------------------------------------------------------------


def test_recipes_with_wrong_values(attacks: Callable[[int], None]) -> None:
    attacks(fuzz(lambda draw: Options(mutated(RECIPE, draw)).build(), named=""))


CODE = "import lightning.pytorch as pl, pathlib\npathlib.Path({here!r}, 'ran').touch()\nclass Mine(pl.Callback): pass"
LAMBDA = "lightning.pytorch.callbacks.LambdaCallback"
HOSTILE: dict[str, dict[str, Any]] = {
    "a callback": {"callbacks": [{"class_path": "elsewhere.Mine"}]},
    "a callback by its name": {"callbacks": ["elsewhere.Mine"]},
    "one callback": {"callbacks": {"class_path": "elsewhere.Mine"}},
    "a logger": {"logger": {"class_path": "elsewhere.Mine"}},
    "a logger by its name": {"logger": "elsewhere.Mine"},
    "a strategy": {"strategy": {"class_path": "elsewhere.Mine"}},
    "a plugin": {"plugins": [{"class_path": "elsewhere.Mine"}]},
    "a profiler": {"profiler": {"class_path": "elsewhere.Mine"}},
    "an argument of a callback": {"callbacks": [{"class_path": LAMBDA, "init_args": {"setup": "elsewhere.Mine"}}]},
    "a function of Python": {"callbacks": [{"class_path": LAMBDA, "init_args": {"setup": "os.system"}}]},
    "a function by a detour": {
        "callbacks": [{"class_path": LAMBDA, "init_args": {"setup": "lightning.pytorch.callbacks.callback.os.system"}}]
    },
    "a class of jsonargparse": {"callbacks": [{"class_path": "jsonargparse.ArgumentParser"}]},
    "a loader of PyTorch": {"callbacks": [{"class_path": LAMBDA, "init_args": {"setup": "torch.hub.load"}}]},
}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of somebody else's, which leaves a mark when it is imported."""
    (tmp_path / "elsewhere.py").write_text(CODE.format(here=str(tmp_path)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "elsewhere", raising=False)
    return tmp_path / "ran"


@pytest.mark.parametrize("attack", HOSTILE)
def test_code_of_others_is_not_imported(elsewhere: Path, attack: str, attacks: Callable[[int], None]) -> None:
    attacks(1)
    with pytest.raises(ConfigError) as error:
        Options(recipe(**HOSTILE[attack]))
    assert "\n" not in str(error.value)
    assert "--trust-recipe" in str(error.value) or "detour" in attack
    assert not elsewhere.exists()


def test_a_trusted_recipe_imports_what_it_names(elsewhere: Path) -> None:
    _, _, arguments = Options(recipe(**HOSTILE["a callback"]), trusted=True).build()
    assert type(arguments["callbacks"][0]).__name__ == "Mine"
    assert elsewhere.exists()
    with pytest.raises(ConfigError, match=r"the recipe names elsewhere\.Mine"):  # trust is for one recipe
        Options(recipe(**HOSTILE["a callback"]))


def test_the_command_line_says_how_to_trust(
    elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(**HOSTILE["a callback"])))
    assert main(["fit", str(path), "--print_config"]) == 2
    assert "names elsewhere.Mine" in capsys.readouterr().err
    assert main(["fit", str(path), "--print_config", "--trust-recipe"]) == 0
    assert "class_path: elsewhere.Mine" in capsys.readouterr().out


@pytest.mark.parametrize(
    "trainer",
    [
        {"callbacks": [{"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "x"}}]},
        {"callbacks": [{"class_path": "EarlyStopping", "init_args": {"monitor": "x"}}]},
        {"logger": {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": "x"}}},
        {"strategy": {"class_path": "lightning.pytorch.strategies.DDPStrategy"}},
        {"profiler": {"class_path": "lightning.pytorch.profilers.SimpleProfiler"}},
        {"plugins": [{"class_path": "lightning.pytorch.plugins.environments.SLURMEnvironment"}]},
    ],
)
def test_what_is_offered_is_imported(trainer: dict[str, Any]) -> None:
    _, _, arguments = Options(recipe(**trainer)).build()
    (name,) = trainer
    assert arguments[name]


def test_settings_of_the_process_are_as_before() -> None:
    from jsonargparse import _common

    before = dict(_common.parsing_settings)
    Options(RECIPE)
    with pytest.raises(UnknownName):
        Options({**RECIPE, "colour": 1})
    assert _common.parsing_settings == before
