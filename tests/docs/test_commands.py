"""Every command of README and docs is one that the command line takes, and runs unless ``skipped.py`` says why not."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from focalnet.cli import main as cli
from focalnet.cli.recipes import find_recipe, merge, nested, read_recipe
from focalnet.cli.train import parse_overrides
from focalnet.training.options import Options
from tests.docs.pages import PAGES, ROOT, Command, blocks, commands
from tests.docs.skipped import COMMANDS, reason_of
from tests.docs.stand_ins import patch_published, write_inputs

ALL = [command for page in PAGES for command in commands(page)]
# One of each that occurs several times.
RUN = list({c.text: c for c in ALL if reason_of(c.page, c.text, COMMANDS) is None}.values())
GROUP: Any = typer.main.get_command(cli.app)


def arguments_of(command: Command) -> list[str]:
    return [re.sub(r"\bRECIPE\b", "classification/digits", value) for value in command.arguments]


@pytest.mark.parametrize("command", ALL, ids=str)
def test_the_command_line_takes_it(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_inputs(command.text, tmp_path)
    name, *arguments = arguments_of(command)
    assert name in GROUP.commands, f"{command}: no command {name}"
    with GROUP.commands[name].make_context(name, arguments) as context:  # raises for an option that does not exist
        overrides = parse_overrides(context.args) if context.args else {}
        recipe = context.params.get("recipe")
    if recipe is not None and name in ("fit", "validate"):
        check_options(recipe, tuple(sorted({**overrides, "data.root": "."}.items())))


@functools.cache  # building the parser of all options takes a second
def check_options(recipe: str, overrides: tuple[tuple[str, str], ...]) -> None:
    """Raises an error if the recipe has no such option, or an option does not take the value."""
    Options(merge(read_recipe(find_recipe(recipe)), nested(dict(overrides))))


@pytest.mark.parametrize("command", RUN, ids=str)
def test_it_runs(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_inputs(command.text, tmp_path)
    patch_published(monkeypatch)
    assert cli.main(arguments_of(command)) == 0, capsys.readouterr().err
    written = capsys.readouterr()
    assert written.out or written.err
    for place in re.findall(r"--out (\S+)", command.text):
        assert Path(place).exists()


@pytest.mark.parametrize(("page", "start", "reason"), COMMANDS)
def test_every_reason_is_needed(page, start, reason):
    assert any(reason_of(c.page, c.text, [(page, start, reason)]) for c in ALL)


def test_the_readme_shows_what_is_printed(monkeypatch, capsys):
    (printed,) = [block.text for block in blocks("README.md") if block.text.startswith("docs/images/cat.jpg")]
    monkeypatch.chdir(ROOT)
    assert cli.main(["predict", "docs/images/cat.jpg"]) == 0
    for shown, line in zip(printed.splitlines(), capsys.readouterr().out.splitlines(), strict=True):
        percent, _, name = shown.partition("%")
        assert line.partition("%")[2] == name
        assert name == "" or float(line.partition("%")[0]) == pytest.approx(float(percent), abs=0.2)


def test_commands_are_found():
    assert len(ALL) > 60
    assert len(RUN) > 8
