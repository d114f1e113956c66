"""Names of classes and files that command a terminal, break a page or cannot be encoded."""

from __future__ import annotations

import dataclasses
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import focalnet
from focalnet import weights
from focalnet.card import ModelCard, Preprocessing
from focalnet.cli.main import main
from focalnet.cli.terminal import ToStderr, say
from focalnet.errors import escaped
from focalnet.metrics.base import Bar, ConfusionMatrix, Example, Metric, PrecisionRecall, Section, Table
from focalnet.results import Classification
from focalnet.training.report import write_report
from focalnet.training.run_folder import RunFolder
from focalnet.visualize.canvas import render

NAMES = (
    "\x1b]0;owned\x07\x1b[2J",
    "line\nerror: forged\r\x08",
    "\u202egnp.exe",
    "\x9b31m \u2028 \x85",
    "\udcff\ud800",
    "<script>alert(1)</script> & ' \"",
    "$\\frac{",
    "n" * 20_000,
    "",
    "plain, ünïcödé 猫 👩‍👩‍👧",
)


ROWS = [{"epoch": 1, "train_loss": 2.0, "val_loss": 1.5, "x": 1.0, "learning_rate": 1e-3}]


def harmless(text: str) -> bool:
    """Whether nothing in a text is obeyed by a terminal but the ends of its lines."""
    return not any(c < " " or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2028" for c in text.replace("\n", ""))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("a\nb\r\t", "a\\x0ab\\x0d\\x09"),
        ("\x7f\x85\x9b", "\\x7f\\x85\\x9b"),
        ("\u2028\u202e", "\\u2028\\u202e"),
        ("\udcff\ud800", "\\xff\\ud800"),
        ("plain, ünïcödé 猫 👩‍👩‍👧 \\", "plain, ünïcödé 猫 👩‍👩‍👧 \\"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text: str, expected: str) -> None:
    assert escaped(text) == expected


def test_every_name_is_one_line(capsys: pytest.CaptureFixture[str], attacks: Callable[[int], None]) -> None:
    attacks(len(NAMES))
    say(*NAMES)
    printed = capsys.readouterr().out
    assert harmless(printed)
    assert printed.count("\n") == len(NAMES)
    logger = logging.Logger("x")
    logger.addHandler(ToStderr())
    for name in NAMES:
        logger.warning("left out %s", name)
    printed = capsys.readouterr().err
    assert harmless(printed)
    assert printed.count("\n") == len(NAMES)


def test_predictions_print_names_that_command_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], attacks: Callable[[int], None]
) -> None:
    attacks(len(NAMES))
    model = focalnet.create_model("focalnet_nano", num_classes=len(NAMES))
    model.card = ModelCard(name="x", class_names=NAMES, preprocessing=Preprocessing(image_size=32))
    path = weights.save(model, tmp_path / "x.safetensors")
    image = tmp_path / "a\x1b[31m.png"
    Image.new("RGB", (40, 30)).save(image)
    code = main(["predict", str(image), "--model", str(path), "--top", "10", "--out", str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert harmless(printed.out)
    assert len(printed.out.splitlines()) == 1 + len(NAMES) + 1
    (entry,) = json.loads((tmp_path / "out" / "predictions.json").read_text())["predictions"]
    assert {one["name"] for one in entry["top"]} == set(NAMES)
    assert main(["explain", str(image), "--model", str(path), "--out", str(tmp_path / "maps")]) == 0
    assert harmless(capsys.readouterr().out)


def test_an_error_and_a_warning_are_harmless(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(tmp_path / "\x1b[2J none.png")]) == 2
    assert "\\x1b[2J none.png" in capsys.readouterr().err
    before = warnings.showwarning
    try:
        main(["--version"])
        warnings.showwarning(UserWarning("\x1b[2J\nforged"), UserWarning, "x.py", 1)
    finally:
        warnings.showwarning = before
    assert harmless(capsys.readouterr().err)


def test_a_report_holds_any_name(tmp_path: Path, attacks: Callable[[int], None]) -> None:
    attacks(len(NAMES))
    count = len(NAMES)
    folder = RunFolder(tmp_path)
    folder.versions.write_text(json.dumps({"focalnet": "<b>"}))
    folder.config.write_text("data: <script>")
    image = Image.new("RGB", (8, 8))
    result = Classification(labels=(0,), scores=(0.5,), names=NAMES[:1], image=image)
    sections = [
        Section("Names <b>", text=NAMES[5], tables=[Table([(name, Bar(0.5)) for name in NAMES], NAMES)]),
        Section("Confusions", charts=[ConfusionMatrix(np.eye(count, dtype=np.int64), NAMES, NAMES)]),
        Section("Curves", charts=[PrecisionRecall(np.full((10, 101, count), 50.0), NAMES)]),
        Section("Examples", results=[Example(result, f"{name}\n50 %") for name in NAMES]),
    ]
    card = ModelCard(name="\x1b<script>", class_names=NAMES)
    results = {"images": 1, "epochs": 1, "seconds": 1.0, "images_per_s": 1.0}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        write_report(folder, card, results, ROWS, [Metric("x", "\x1b<script>", 1.0)], sections)
    page = folder.report.read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "\x1b" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1)])
def test_any_name_is_drawn(shape: tuple[int, int], attacks: Callable[[int], None]) -> None:
    attacks(len(NAMES))
    result = Classification(
        labels=tuple(range(len(NAMES))), scores=(0.1,) * len(NAMES), names=NAMES, image=Image.new("RGB", shape)
    )
    for name in NAMES:
        alone = dataclasses.replace(result, labels=(0,), scores=(0.5,), names=(name,))
        assert max(alone.draw().size) <= 4096
        assert alone.draw(as_frame=True).size == shape
    assert max(result.draw().size) <= 4096


def test_any_name_is_drawn_on_objects_and_maps() -> None:
    from focalnet.results import Detections, SemanticMap

    image, count = Image.new("RGB", (64, 48)), len(NAMES)
    boxes = torch.tensor([[1.0, 1, 30, 30]]).repeat(count, 1)
    found = Detections(boxes, torch.full((count,), 0.5), torch.arange(count), NAMES, size=(48, 64), image=image)
    assert max(found.draw().size) <= 4096
    labels = torch.arange(48 * 64).reshape(48, 64) % count
    assert max(SemanticMap(labels, NAMES, image=image).draw().size) <= 4096
    assert all(map(harmless, map(escaped, [*found.summary(), *SemanticMap(labels, NAMES).summary()])))


def test_an_empty_chart_is_drawn() -> None:
    from focalnet.visualize import draw_confusion

    assert render(draw_confusion(np.zeros((2, 2), dtype=np.int64), NAMES[:2], NAMES[:2])).size
