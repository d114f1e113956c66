"""Old names still work, and say what they are called now."""

from __future__ import annotations

import importlib
import sys

import pytest

from focalnet import card, create_model, nn, results


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
