"""A network that comes from outside is used like our own, through the library and the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import focalnet
from focalnet import registry, weights, zoo
from focalnet.cli.main import main
from focalnet.errors import ConfigError, UnknownName
from focalnet.results import Detections
from focalnet.samples import Batch, ImageInfo, ObjectTarget
from tests.data.coco import write_coco
from tests.models import toy_detector
from tests.models.toy_detector import FAMILIES, Cells, CellsConfig

NAME = "cells_focalnet_pico"
RECIPE: dict[str, Any] = {
    "task": "detection",
    "model": {"architecture": NAME, "options": {"score_threshold": 0.0}, "compile": False},
    "data": {
        "masks": False, "batch_size": 2, "num_workers": 0, "image_size": 64, "max_size": 96,
        "augmentation": {"short_sides": [64], "crop_prob": 0.0},
    },
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "logger": False},
}  # fmt: skip


@pytest.fixture
def registered() -> Iterator[None]:
    for family in FAMILIES:
        registry.register(family)
    yield
    for family in FAMILIES:
        registry.unregister(family.name)


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"), images=4)


def recipe(folder: Path, coco: Path) -> str:
    path = folder / "cells.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "data": {**RECIPE["data"], "root": str(coco)}}))
    return str(path)


@pytest.mark.usefixtures("registered")
def test_it_is_listed_created_and_learns() -> None:
    assert NAME in focalnet.list_models("cells*")
    assert zoo.cost(NAME).params > 0
    torch.manual_seed(0)
    model: Any = focalnet.create_model(NAME, num_classes=3)
    assert isinstance(model, Cells)
    assert (model.config.num_classes, model.backbone.shape.embed_dim) == (3, 8)
    target = ObjectTarget(torch.tensor([[8.0, 8, 40, 40]]), torch.tensor([1]), None, torch.zeros(0, 4))
    batch = Batch(torch.randn(1, 3, 64, 64), [(64, 64)], [target], [ImageInfo("a.png", (64, 64))])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = torch.stack(list(model.loss(batch).values())).sum()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2
    (result,) = model.eval().predict(batch.images)
    assert isinstance(result, Detections)
    assert int(result.labels[0]) == 1
    with pytest.raises(ConfigError, match=f"{NAME} is not a network for semantic; choose one of upernet, mask2former"):
        focalnet.create_model(NAME, task="semantic")


@pytest.mark.usefixtures("registered")
def test_it_trains_validates_saves_loads_and_predicts(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pycocotools", reason="detection needs the extra dense")
    file = recipe(tmp_path, coco)
    run = focalnet.fit(file, output=tmp_path / "run")
    assert "box_ap" in json.loads((run / "results.json").read_text())
    saved = str(run / "model.safetensors")
    model: Any = focalnet.load(saved)
    assert isinstance(model.config, CellsConfig)
    assert model.class_names == ("ant", "bee")
    image = next(iter((coco / "images").rglob("*.png")), None) or next(coco.rglob("*.png"))
    result = focalnet.Predictor(saved, min_score=0.0)(str(image))
    assert isinstance(result, Detections)
    assert len(result) > 0
    assert main(["validate", file, "--weights", saved]) == 0
    assert "box_ap" in capsys.readouterr().out
    assert main(["predict", str(image), "--model", saved, "--min-score", "0", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "detections.json").is_file()
    assert main(["models", "cells*"]) == 0
    assert NAME in capsys.readouterr().out
    # What somebody trained with OpenMMLab's names, without a description, is told by its mark.
    theirs = weights.export(weights.read(saved), tmp_path / "theirs.pth", "openmmlab")
    assert isinstance(weights.read(theirs).config, CellsConfig)


def test_another_package_offers_it_by_an_entry_point(coco: Path, tmp_path: Path) -> None:
    """The command line knows what is installed: a distribution with an entry point of the group focalnet.models."""
    pytest.importorskip("pycocotools", reason="detection needs the extra dense")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "cells_net.py").write_text(Path(toy_detector.__file__).read_text())
    info = tmp_path / "site" / "cells_net-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cells-net\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[focalnet.models]\ncells = cells_net\n")
    paths = [str(tmp_path / "site"), str(Path(focalnet.__file__).parents[1])]
    command = [sys.executable, "-m", "focalnet.cli.main", "fit", recipe(tmp_path, coco), "--output", "run"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_a_package_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    info = tmp_path / "broken_net-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-net\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[focalnet.models]\nbroken = broken_net\n")
    paths = [str(tmp_path), str(Path(focalnet.__file__).parents[1])]
    code = "import focalnet; print(len(focalnet.list_models()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert int(done.stdout) == len(focalnet.list_models())
    assert 'the networks of "broken" are left out: ModuleNotFoundError' in done.stderr


@pytest.mark.usefixtures("registered")
def test_what_is_taken_is_refused() -> None:
    (cells,) = FAMILIES
    with pytest.raises(ConfigError, match='"cells" is already registered by the family "cells"'):
        registry.register(cells)
    with pytest.raises(ConfigError, match='"focalnet_nano" is already registered by the family "classifier"'):
        registry.register(
            replace(cells, name="other", file_kind="other", variants={"focalnet_nano": cells.variants[NAME]})
        )
    with pytest.raises(UnknownName, match='no family "cell" was registered; did you mean "cells"'):
        registry.unregister("cell")
