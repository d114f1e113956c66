"""Timing in turns, and the table of formats."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from focalnet.cli.benchmark import Timing, in_turns
from focalnet.cli.formats import FORMATS, Row, _images, table, ties
from focalnet.cli.main import main
from focalnet.exporting.quantization.data import LabeledData
from tests.data.semantic import write_semantic
from tests.exporting.networks import network


def test_every_candidate_is_called_once_a_round_in_rotating_order() -> None:
    calls: list[str] = []
    timings = in_turns({n: lambda n=n: calls.append(n) for n in "abc"}, rounds=3, warmup=1)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    assert [len(t.seconds) for t in timings.values()] == [3, 3, 3]
    assert all(s >= 0 for t in timings.values() for s in t.seconds)


def test_median_and_quartiles() -> None:
    assert Timing((3.0, 1.0, 2.0, 5.0, 4.0)).median == 3.0
    assert Timing((3.0, 1.0, 2.0, 5.0, 4.0)).quartiles == (2.0, 4.0)
    assert Timing((2.0,)).quartiles == (2.0, 2.0)


def row(name: str, *seconds: float, reason: str = "") -> Row:
    return Row(name, FORMATS["PyTorch"], Path(__file__), reason, {"top-1": 91.25}, seconds, 123_400_000)


def test_ties_of_formats() -> None:
    rows = [row("a", 1.04), row("b", 1.0), row("c", 1.06), row("d", 1.1), row("e", 2.0), row("f", reason="no")]
    assert ties(rows) == [["b", "a"], ["c", "d"]]
    assert ties([row("a", 1.0), row("b", 1.2)]) == []


def test_the_table_of_formats() -> None:
    rows = [row("one", *[0.01 * i for i in range(1, 22)]), row("two\n", 0.1), row("three", reason="no compiler")]
    assert rows[0].p95 == pytest.approx(0.2)
    header, first, second, *rest = table(rows)
    assert header.split() == ["format", "file", "top-1", "median", "p95", "peak", "memory"]
    assert " ".join(first.split()).endswith("MB 91.25 % 110.00 ms 200.00 ms 123 MB")
    assert second.split()[0] == r"two\x0a"
    assert rest == ["not measured: three: no compiler"]
    assert rows[2].to_dict() == {"format": "three", "not_measured": "no compiler"}
    assert rows[1].to_dict()["median_s"] == 0.1


def test_images_to_time_are_those_that_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither label maps nor training images; those of an archive are written to files."""
    model = network("upernet")
    model.card = replace(model.card, class_names=("red", "green", "blue"))
    write_semantic(tmp_path / "data", images=3)
    labeled = LabeledData(model, model.card, tmp_path / "data")
    files, described = _images(model, labeled, tmp_path)
    assert files == [str(tmp_path / f"data/images/val/0{i}.png") for i in range(3)]
    assert described == f"3 images of {tmp_path / 'data'} (split val)"
    monkeypatch.setattr("focalnet.cli.formats._IMAGES", 2)
    monkeypatch.setattr(labeled, "path", lambda index: Path(f"data.tar/{index}.png"))
    files, described = _images(model, labeled, tmp_path)
    assert files == [str(tmp_path / f"{i}.png") for i in range(2)]
    for i, file in enumerate(files):
        expected = np.asarray(Image.open(tmp_path / f"data/images/val/0{i}.png"))
        np.testing.assert_array_equal(np.asarray(Image.open(file)), expected)
    assert _images(model, None, tmp_path) == ([str(tmp_path / "noise.png")], "an image of noise")


def test_formats_that_cannot_be_measured_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = ("PyTorch eager", "PyTorch compiled", "ONNX Runtime")
    monkeypatch.setattr("focalnet.cli.formats.FORMATS", {name: FORMATS[name] for name in kept})
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    out = tmp_path / "out.json"
    assert main(["benchmark", "focalnet_nano.cifar10", "--formats", "--rounds", "2", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "not measured: PyTorch compiled: takes minutes; add --compile" in said
    assert 'not measured: ONNX Runtime: this needs the package "onnxscript"' in said
    eager, compiled, onnx = json.loads(out.read_text())["rows"]
    assert len(eager["seconds"]) == 2
    assert eager["peak_memory_bytes"] > 50e6
    assert compiled.keys() == onnx.keys() == {"format", "not_measured"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--formats", "--batch", "2"], "leave out --batch, --size, --dtype and --device"),
        (["--split", "test"], "--data, --split and --file are options of --formats"),
        (["--formats", "--file", "model.bin"], 'model.bin: --file takes files of "focalnet export"'),
        (["--formats", "--file", "missing.onnx"], "missing.onnx: no such file"),
        (["--formats", "--data", "missing"], "missing: no such file or folder"),
    ],
)
def test_options_of_formats_that_cannot_work(options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "focalnet_nano.cifar10", *options]) == 2
    assert says in capsys.readouterr().err
