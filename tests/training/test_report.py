"""The report of a run."""

from __future__ import annotations

import re

import pytest
import torch

from focalnet.card import ModelCard, Preprocessing
from focalnet.training.callbacks import Judged, Predictions, duration
from focalnet.training.report import write_report
from focalnet.training.run_folder import RunFolder

ROWS = [
    {"epoch": e, "train_loss": 2.0 / e, "val_loss": 1.5 / e, "top1": 50.0 + e, "learning_rate": 1e-3 / e}
    for e in (1, 2, 3)
]
RESULTS = {"top1": 75.0, "images": 4, "images_per_s": 1234.5, "epochs": 3, "seconds": 3723.0}


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path)
    folder.config.write_text("model:\n  architecture: <nano>\n")
    folder.versions.write_text('{"torch": "2.x", "git": "abc"}')
    return folder


def predictions(classes: int = 3) -> Predictions:
    found = Predictions()
    found.classes, found.seconds = classes, 2.0
    found.labels = torch.tensor([0, 0, 1, 2])
    found.ranked = torch.tensor([[0, 1], [1, 0], [1, 2], [2, 0]])
    image = torch.zeros(3, 4, 4)
    found.best = [Judged(0.9, 1, 1, image)]
    found.worst = [Judged(0.1, 0, 1, image)]
    return found


def report(folder, found, names):
    card = ModelCard(name="nano", class_names=names, preprocessing=Preprocessing(image_size=4))
    write_report(folder, card, RESULTS, ROWS, found)
    return folder.report.read_text()


def test_it_is_one_file_with_everything_in_it(folder):
    page = report(folder, predictions(), ("ant", "bee", "cat"))
    assert len(re.findall(r'src="data:image/png;base64,', page)) == 4
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing outside the file
    for text in ("75.00 %", "1 h 02 min", "Confusion matrix", "Worst mistakes", "&lt;nano&gt;", "abc"):
        assert text in page


def test_accuracy_by_class_shows_the_worst_first_and_its_confusion(folder):
    page = report(folder, predictions(), ("ant", "bee", "cat"))
    rows = re.findall(r"<tr><td>(\w+)<td>([\d.]+) %<td>.*?<td>(\d+)<td>(\w*)", page)
    assert rows == [("ant", "50.0", "2", "bee"), ("bee", "100.0", "1", ""), ("cat", "100.0", "1", "")]


def test_many_classes_do_without_a_matrix(folder):
    page = report(folder, predictions(classes=1000), tuple(f"class {i}" for i in range(1000)))
    assert "Confusion matrix" not in page
    assert "Surest right answers" in page


def test_names_are_text_not_markup(folder):
    page = report(folder, predictions(), ("<b>$x_", "$\\frac", "100 % & more"))
    assert "<b>$x_" not in page
    assert "100 % &amp; more" in page


def test_summary_counts_top1_and_top5():
    found = predictions(classes=10)
    summary = found.summary()
    assert summary == {"top1": 75.0, "top5": 100.0, "images": 4, "images_per_s": 2.0}
    assert "top5" not in predictions(classes=5).summary()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
