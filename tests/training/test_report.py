"""The report of a run."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch

from focalnet.card import ModelCard, Preprocessing
from focalnet.metrics.base import Section
from focalnet.metrics.classification import ClassificationEvaluator
from focalnet.results import Classification
from focalnet.samples import Batch, ImageInfo
from focalnet.training.callbacks import duration
from focalnet.training.engine import Measurement
from focalnet.training.report import write_report
from focalnet.training.run_folder import RunFolder

ROWS = [
    {"epoch": e, "train_loss": 2.0 / e, "val_loss": 1.5 / e, "top1": 50.0 + e, "learning_rate": 1e-3 / e}
    for e in (1, 2, 3)
]
RESULTS = {
    "top1": 75.0,
    "images": 4,
    "images_per_s": 1234.5,
    "epochs": 3,
    "seconds": 3723.0,
    "ended": "trainer.patience",
    "kept": {"weights": "best", "epoch": 2, "updates": 20},
    "last": {"top1": 53.0},
    "test": {"top1": 61.5, "images": 9},
}


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path)
    folder.config.write_text("model:\n  architecture: <nano>\n")
    folder.versions.write_text('{"torch": "2.x", "git": "abc"}')
    return folder


def evaluated(names: tuple[str, ...] = ("ant", "bee", "cat")) -> ClassificationEvaluator:
    """Of four images, the second of which is taken for the second class."""
    data = SimpleNamespace(class_names=names, preprocessing=Preprocessing(image_size=4))
    evaluator = ClassificationEvaluator(data, examples=True)
    labels = torch.tensor([0, 0, 1, 2])
    logits = torch.zeros(4, len(names)).scatter(1, torch.tensor([0, 1, 1, 2])[:, None], 3.0)
    logits[1, 0] = 1.0
    results = [Classification((), (), (), logits=row) for row in logits]
    infos = [ImageInfo("image", (4, 4))] * 4
    evaluator.update(results, Batch(torch.zeros(4, 3, 4, 4), [(4, 4)] * 4, labels, infos))
    return evaluator


def report(folder, evaluator):
    card = ModelCard(name="nano", class_names=evaluator.class_names, preprocessing=Preprocessing(image_size=4))
    write_report(folder, card, RESULTS, ROWS, evaluator.compute(), evaluator.report())
    return folder.report.read_text()


def test_it_is_one_file_with_everything_in_it(folder):
    page = report(folder, evaluated())
    assert len(re.findall(r'src="data:image/png;base64,', page)) == 4  # three right, one wrong
    assert page.count("<svg ") == 4  # loss, top-1, learning rate, confusion matrix
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # nothing outside the file
    links, places = re.findall(r'<a href="#([^"]+)"', page), re.findall(r'<h2 id="([^"]+)"', page)
    assert links == places
    assert len(set(places)) == len(places) == 9
    assert not re.search(r'<img(?![^>]*alt="[^"]+)', page)
    assert not re.search(r"<svg(?![^>]*aria-label=)", page)
    for text in ("75.00 %", "1 h 02 min", "Confusion matrix", "Worst mistakes", "&lt;nano&gt;", "abc"):
        assert text in page


def test_accuracy_by_class_shows_the_worst_first_and_its_confusion(folder):
    page = report(folder, evaluated())
    rows = re.findall(r"<tr><td>(\w+)<td>([\d.]+) %<td>.*?<td>(\d+)<td>(\w*)", page)
    assert rows == [("ant", "50.0", "2", "bee"), ("bee", "100.0", "1", ""), ("cat", "100.0", "1", "")]


def test_many_classes_do_without_a_matrix(folder):
    page = report(folder, evaluated(tuple(f"class {i}" for i in range(1000))))
    assert "Confusion matrix" not in page
    assert "Most confident correct predictions" in page


def test_colors_of_classes_have_a_legend(folder):
    section = Section("Maps", legend=[((128, 64, 128), "road"), ((1, 2, 3), "<sky>")])
    card = ModelCard(name="toy", preprocessing=Preprocessing())
    write_report(folder, card, RESULTS, ROWS, evaluated().compute(), [section])
    page = folder.report.read_text()
    assert '<li><i style="background: rgb(128, 64, 128)"></i>road</li>' in page
    assert "&lt;sky&gt;" in page


def test_names_are_text_not_markup(folder):
    page = report(folder, evaluated(("<b>$x_", "$\\frac", "100 % & more")))
    assert "<b>$x_" not in page
    assert "100 % &amp; more" in page


def test_top1_and_top5_are_measured():
    evaluator = evaluated(tuple("abcdefghij"))
    measured = Measurement(evaluator.compute(), evaluator.images, 2.0).to_dict()
    assert measured == {"top1": 75.0, "top5": 100.0, "images": 4, "images_per_s": 2.0}
    assert [metric.name for metric in evaluated(tuple("abcde")).compute()] == ["top1"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_it_says_which_weights_are_kept_and_why_the_run_ended(folder):
    page = report(folder, evaluated())
    assert "best: epoch 2" in page
    assert "ended early: trainer.patience" in page
    table = re.search(r'<h2 id="weights">.*?</table>', page, re.DOTALL).group()
    assert re.findall(r"<tr><td>(\w+) \S+<td>(\w+)<td>(\d)<td>([\d.]+) %", table) == [
        ("best", "validation", "2", "75.00"),
        ("last", "validation", "3", "53.00"),
        ("best", "test", "2", "61.50"),
    ]
    assert ">1.5<" not in re.search(r'aria-label="loss.*?</svg>', page, re.DOTALL).group().split("epoch")[0]


def test_a_model_that_predicts_one_class_is_warned_of(folder):
    evaluator = evaluated()
    assert 'role="alert"' not in report(folder, evaluator)
    evaluator.batches = [(torch.tensor([0] * 20 + [1]), torch.zeros(21, 3, dtype=torch.int64), torch.zeros(21))]
    page = report(folder, evaluator)
    assert re.search(r'role="alert">Every image is predicted to be of class &quot;ant&quot;', page)
    assert "20 times as many images" in page


def test_nothing_is_drawn_of_a_run_without_an_epoch(folder):
    evaluator = evaluated()
    card = ModelCard(name="nano", class_names=evaluator.class_names, preprocessing=Preprocessing(image_size=4))
    write_report(folder, card, RESULTS, [], evaluator.compute(), evaluator.report())
    page = folder.report.read_text()
    assert page.count("<svg ") == 1
    assert 'id="training"' not in page
