"""A new metric is one more ``Metric`` of an evaluator: everything that prints, writes or draws metrics has it."""

from __future__ import annotations

import csv
import json
import logging

import pytest

import focalnet
from focalnet.cli.main import main
from focalnet.cli.train import fit
from focalnet.metrics.base import Metric
from focalnet.metrics.classification import ClassificationEvaluator
from focalnet.training import ClassificationTask, finishing, report
from tests.training.toy import TOY

RECIPE = "classification/digits"


class ErrorEvaluator(ClassificationEvaluator):
    """Also has how often the network is wrong."""

    def compute(self) -> list[Metric]:
        metrics = super().compute()
        error = Metric("errors", "errors", 10 * (100 - metrics[0].value), "‰", headline=True, higher_is_better=False)
        return [*metrics, error]


def test_a_new_metric_is_everywhere(tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.setattr(ClassificationTask, "evaluator_class", ErrorEvaluator)
    monkeypatch.setattr(finishing, "write_report", report.write_report)
    caplog.set_level(logging.INFO)
    run = fit(RECIPE, output=tmp_path / "run", **TOY)
    results = json.loads((run / "results.json").read_text())
    assert list(results)[:3] == ["top1", "top5", "errors"]
    assert results["errors"] == pytest.approx(10 * (100 - results["top1"]))
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    assert list(rows[0])[4:8] == ["val_loss", "top1", "top5", "errors"]
    assert float(rows[results["kept"]["epoch"] - 1]["errors"]) == pytest.approx(results["errors"], rel=1e-5)
    said = f"errors {results['errors']:.2f} ‰"
    assert any(line.startswith(f"epoch {results['kept']['epoch']}/2") and said in line for line in caplog.messages)
    assert f"<b>{results['errors']:.2f} ‰</b>errors" in (run / "report.html").read_text()
    card = focalnet.load(run / "model.safetensors").card
    assert card is not None
    assert card.metrics == {"top1": round(results["top1"], 2), "errors": round(results["errors"], 2)}

    options = [f"--{name}={json.dumps(value)}" for name, value in TOY.items() if name != "trainer.max_epochs"]
    options = [option.replace('"', "") if "accelerator" in option else option for option in options]
    capsys.readouterr()
    assert main(["validate", RECIPE, "--weights", str(run / "model.safetensors"), *options]) == 0
    assert f"{'errors':<14} {results['errors']:8.2f} ‰" in capsys.readouterr().out
