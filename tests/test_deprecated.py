"""Old names still work, and say what they are called now."""

from __future__ import annotations

import importlib
import sys

import pytest

from focalnet import Predictor, card, create_model, inference, nn, results
from focalnet.inference import Views, tta
from tests.inference.segmenters import colours


def test_layers_is_nn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "focalnet.layers", raising=False)
    with pytest.warns(DeprecationWarning, match=r"focalnet\.nn"):
        layers = importlib.import_module("focalnet.layers")
    assert layers.FocalModulation is nn.FocalModulation
    assert layers.FocalNetBlock is nn.FocalNetBlock


def test_structures_are_results_samples_and_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "focalnet.structures", raising=False)
    with pytest.warns(DeprecationWarning, match=r"focalnet\.results"):
        structures = importlib.import_module("focalnet.structures")
    assert structures.Detections is results.Detections
    assert structures.ModelCard is card.ModelCard


def test_classifier_config_is_config() -> None:
    model = create_model("focalnet_nano")
    with pytest.warns(DeprecationWarning, match="config"):
        assert model.classifier_config is model.config


def test_looks_are_views() -> None:
    with pytest.warns(DeprecationWarning, match="Views"):
        looks = inference.Looks
    assert looks is Views
    with pytest.warns(DeprecationWarning, match="views"):
        predictor = Predictor(colours(), "cpu", looks=looks(flip=True))
    assert predictor._pipeline.options.views == Views(flip=True)


def test_slide_is_in_tta(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "focalnet.inference.segmenting", raising=False)
    with pytest.warns(DeprecationWarning, match=r"focalnet\.inference\.tta\.slide"):
        segmenting = importlib.import_module("focalnet.inference.segmenting")
    assert segmenting.slide is tta.slide
