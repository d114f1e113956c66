"""The commands of docs/explain.md do what the page says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from focalnet.cli.main import main
from focalnet.explanations import METHODS
from tests.inference.small import noise

PAGE = (Path(__file__).parents[1] / "docs/explain.md").read_text()
COMMANDS = re.findall(r"^focalnet .*$", PAGE, re.MULTILINE)
WRITTEN = {
    "--animation": "cat/depth.gif",
    "--levels": "cat/levels.png",
    "--kernels": "kernels.png",
    "--profiles": "kernel-profiles.png",
    "--method grad_cam": "cat/heat-grad_cam.png",
    "--method": "cat/heat.png",
}


@pytest.mark.parametrize("command", [command for command in COMMANDS if "--evaluate" not in command])
def test_a_command_of_the_page(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    noise(48, 40).save(tmp_path / "photos/cat.jpg")
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command, comments=True)[1:]) == 0
    assert (tmp_path / "out/cat/sheet.png").exists()
    for option, name in WRITTEN.items():
        assert (tmp_path / "out" / name).exists() == (option in command), name


def test_the_page_evaluates_with_options_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two images here, and methods that are fast; tests/explanations/test_evaluation.py measures more."""
    commands = [command for command in COMMANDS if "--evaluate" in command]
    assert len(commands) == 3
    for name in ("ant", "bee"):
        (tmp_path / f"data/cifar10/test/{name}").mkdir(parents=True)
        noise(32, 32).save(tmp_path / f"data/cifar10/test/{name}/a.png")
    monkeypatch.chdir(tmp_path)
    first, *_ = (command.replace("--images 100", "--images 1") + " --method gates" for command in commands)
    assert main(shlex.split(first)[1:]) == 0
    for name in ("evaluation.json", "evaluation.csv", "evaluation.html"):
        assert (tmp_path / "out/evaluation" / name).exists()


def test_the_page_names_every_method() -> None:
    table = PAGE[PAGE.index("| method |") :]
    assert all(f"`{name}`" in table for name in METHODS)
