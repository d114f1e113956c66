"""Data with the options of a run, where a folder alone does not say what its images and labels are."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from focalnet.errors import ConfigError, DataError, FocalNetError
from focalnet.explanations.subjects import find_subjects
from focalnet.exporting.quantization.data import LabeledData
from focalnet.training.data_of_run import open_data
from tests.explanations.test_attribution import dense
from tests.inference.small import noise

NAMES = ("ant", "bee", "cat")
OPTIONS = {"images": "photos", "masks": "marks", "label_map": {10: 0, 20: 1, 30: 2}, "class_names": list(NAMES)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Pairs of one folder, with labels of 10, 20 and 30."""
    labels = (10 * torch.arange(1, 4, dtype=torch.uint8)).repeat_interleave(30).expand(70, 90)
    for i, (folder, image) in itertools.product(range(5), (("photos", None), ("marks", labels))):
        (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
        pixels = noise(90, 70, seed=i) if image is None else Image.fromarray(image.numpy())
        pixels.save(tmp_path / "data" / folder / f"{i}.png")
    return tmp_path / "data"


def write(path: Path, options: Any) -> Path:
    path.write_text(json.dumps(options))  # JSON is YAML
    return path


def uses(model: Any, data: Path) -> Iterator[Any]:
    yield lambda: LabeledData(model, model.card, data)
    yield lambda: list(find_subjects(model, data, 2, "val"))


def test_labels_are_read_as_in_the_run(root: Path, tmp_path: Path) -> None:
    model = dense("upernet")
    run = write(
        tmp_path / "config.yaml",
        {"task": "semantic", "data": {"root": str(root), "batch_size": 4, "ratios": [1, 2], **OPTIONS}},
    )
    labeled, subjects = (use() for use in uses(model, run))
    assert (labeled.calibration, labeled.images) == (4, 1)
    assert labeled.preprocessing.image_size == model.card.preprocessing.image_size
    assert {target.label for one in subjects for target in one.targets} <= {0, 1, 2}
    for use in uses(model, root):
        with pytest.raises(DataError, match=r"given in a YAML file \(data: \{root: .*data, \.\.\.\}\) in place"):
            use()


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ([1], "does not say what the data are"),
        ({"data": "digits"}, "does not say what the data are"),
        ({"data": {"root": "x"}}, "is of the task classification, and the model of semantic"),
        ({"task": "semantic", "data": {"root": "x", "mask": "y"}}, 'no option "data.mask"'),
        ({"task": "semantic", "data": {"root": "x", "holdout": 3}}, "data.holdout=3"),
        ({"task": "semantic", "data": {"root": "x", "image_size": "big"}}, "data.image_size"),
    ],
)
def test_what_is_refused(recipe: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(FocalNetError, match=says):
        open_data(write(tmp_path / "config.yaml", recipe), "semantic")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*missing.yaml: No such file"):
        open_data(tmp_path / "missing.yaml", "semantic")
    (tmp_path / "cut.yaml").write_text("data: {root: [")
    with pytest.raises(ConfigError, match=r"cannot read .*cut.yaml"):
        open_data(tmp_path / "cut.yaml", "semantic")
