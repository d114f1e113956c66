"""``focalnet compare`` as typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from focalnet.cli.main import main
from tests.test_cli import refused


def run(folder: Path, top1: float, by_class: dict[str, float | None], **options: Any) -> str:
    folder.mkdir(parents=True)
    per_class = [{"name": name, "images": 3, "accuracy": value} for name, value in by_class.items()]
    results = {"top1": top1, "images": 30, "per_class": per_class, "confusion_matrix": {"counts": [[1]]}}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed_everything": 0, "trainer": options}))
    return str(folder)


def lines(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = run(tmp_path / "a/run", 80.0, {"cat": 90, "dog": 70, "owl": None, "ant": 50}, max_epochs=5, precision="32")
    other = run(tmp_path / "b/run", 82.5, {"dog": 60, "cat": 91, "owl": 3, "ant": 50}, max_epochs=9, precision="32")
    assert main(["compare", one, other]) == 0
    assert lines(capsys) == [
        ["metric", "a/run", "b/run"],
        ["top1", "80.00", "82.50", "(+2.50)"],
        ["images", "30.00", "30.00", "(+0.00)"],
        [],
        ["class", "(accuracy)"],
        ["dog", "70.00", "60.00", "(-10.00)"],
        ["cat", "90.00", "91.00", "(+1.00)"],
        ["ant", "50.00", "50.00", "(+0.00)"],
        [],
        ["option", "a/run", "b/run"],
        ["trainer.max_epochs", "5", "9"],
    ]
    (tmp_path / "c.json").write_text(json.dumps({"miou": 12.0, "images": 3}))
    assert main(["compare", f"{one}/results.json", str(tmp_path / "c.json"), "--classes", "0"]) == 0
    assert lines(capsys)[:4] == [
        ["metric", "run", "c.json"], ["top1", "80.00"], ["images", "30.00", "3.00", "(-27.00)"], ["miou", "12.00"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("classes", "changes", "expected"),
    [
        ({"cat": 1, "cow": 2}, {}, "measured on other classes"),
        ({"cat": 1, "dog": 2}, {"images": 31}, "measured on 30 images and b on 31"),
        ({}, {"top1": None, "miou": 4.0}, "no metric in common"),
    ],
)
def test_what_should_not_be_compared_is_warned_of(tmp_path: Path, capsys, classes, changes, expected) -> None:
    one, other = run(tmp_path / "a", 80.0, {"cat": 3, "dog": 4}), run(tmp_path / "b", 81.0, classes)
    path = Path(other, "results.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert main(["compare", one, other]) == 0
    warning = capsys.readouterr().err
    assert expected in warning
    assert warning.count("\n") == 1
    assert main(["compare", one, one]) == 0
    assert capsys.readouterr().err == ""


def test_classes_of_multi_label_and_the_test_split_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("a", 60.0), ("b", 70.0)):
        per_class = [{"name": "cat", "ap": value, "precision": None, "images": 3}]
        results = {"map": value, "per_class": per_class, "test": {"map": value / 2, "per_class": per_class}}
        (tmp_path / f"{name}.json").write_text(json.dumps(results))
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    assert lines(capsys) == [
        ["metric", "a.json", "b.json"],
        ["map", "60.00", "70.00", "(+10.00)"],
        ["test.map", "30.00", "35.00", "(+5.00)"],
        [],
        ["class", "(ap)"],
        ["cat", "60.00", "70.00", "(+10.00)"],
    ]


def test_what_cannot_be_compared_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = run(tmp_path / "a", 80.0, {})
    assert "two runs" in refused(capsys, "compare", one)
    (tmp_path / "new").mkdir()
    assert "new/results.json: cannot be read: No such file" in refused(capsys, "compare", one, str(tmp_path / "new"))
    (tmp_path / "x.json").write_text("[")
    assert "x.json: is not JSON" in refused(capsys, "compare", one, str(tmp_path / "x.json"))
