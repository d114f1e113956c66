from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from focalnet.exporting import Exported
from focalnet.models import Model
from tests.exporting.networks import network


class Case(NamedTuple):
    """A network and its exported files."""

    model: Model
    onnx: Exported
    torch: Exported


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A classifier: the cheapest network, for everything that does not depend on the family."""
    model, folder = network("classifier"), tmp_path_factory.mktemp("exported")
    return Case(model, model.export(folder / "c.onnx"), model.export(folder / "c.pt2"))


@pytest.fixture(scope="session")
def dino(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    """A DINO, and its ONNX file."""
    model = network("dino", score_threshold=0.0, decoder_layers=1)
    path = tmp_path_factory.mktemp("exported") / "dino.onnx"
    model.export(path)
    return model, path
