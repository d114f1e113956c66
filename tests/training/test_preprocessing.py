"""How images are prepared comes with the weights that a run starts from, unless its options say otherwise."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from focalnet import weights
from focalnet.card import ModelCard, Preprocessing
from focalnet.models import Classifier
from focalnet.training.options import Options
from focalnet.training.preprocessing import as_the_weights_want, data_options
from tests.weights.small import PLAIN, classifier

HOW = Preprocessing(image_size=48, crop_pct=0.9, interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture
def file(tmp_path: Path) -> str:
    model: Classifier = classifier(PLAIN)
    model.card = ModelCard(name="mine", preprocessing=HOW)
    return str(weights.save(model, tmp_path / "mine.safetensors"))


def test_all_that_options_leave_open_is_taken_and_said(file: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    given = {"model": {"weights": file}, "data": {"root": ".", "batch_size": 2}, "trainer": {"max_epochs": 1}}
    options = as_the_weights_want(given)
    assert options["data"] == {"root": ".", "batch_size": 2, **data_options(HOW)}
    assert Options(options).values.data.mean == (0.5, 0.5, 0.5)
    (said,) = caplog.messages
    for part in (
        "mine.safetensors",
        "data.image_size 48",
        "data.crop_pct 0.9",
        "data.mean [0.5, 0.5, 0.5]",
        "data.std",
    ):
        assert part in said


def test_what_options_say_stays_and_other_colors_are_told(file: str, caplog: pytest.LogCaptureFixture) -> None:
    given = {"image_size": "32", "mean": "[0.4, 0.5, 0.5]", "std": [0.25, 0.25, 0.25]}
    options = as_the_weights_want({"model": {"weights": file}, "data": given})
    assert options["data"] == {**given, "crop_pct": 0.9, "interpolation": "bilinear"}
    (said,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert "data.mean is [0.4, 0.5, 0.5], but" in said
    assert "was trained with [0.5, 0.5, 0.5]" in said


def test_a_backbone_gives_its_colors_and_no_size(file: str) -> None:
    options = as_the_weights_want({"task": "semantic", "model": {"backbone_weights": file}, "data": {}})
    assert options["data"] == {"mean": [0.5] * 3, "std": [0.25] * 3}


@pytest.mark.parametrize(
    "model", [{}, {"architecture": "focalnet_nano"}, {"weights": None, "backbone_weights": "null"}]
)
def test_without_weights_nothing_is_taken(model: dict[str, object]) -> None:
    assert as_the_weights_want({"model": model, "data": {"root": "x"}}) == {"model": model, "data": {"root": "x"}}


def test_published_weights_are_not_downloaded_for_it() -> None:
    options = as_the_weights_want({"model": {"weights": "focalnet_tiny_lrf.ms_in1k"}})
    assert options["data"]["image_size"] == 224


def test_weights_for_other_channels_say_nothing_of_colors(tmp_path: Path) -> None:
    model = classifier({**PLAIN, "in_chans": 1})
    model.card = ModelCard(name="gray", preprocessing=Preprocessing(image_size=48, mean=(0.5,), std=(0.5,)))
    file = weights.save(model, tmp_path / "gray.safetensors")
    assert set(as_the_weights_want({"model": {"weights": str(file)}})["data"]) == {
        "image_size",
        "crop_pct",
        "interpolation",
    }
