"""Cards and their preprocessing are what they claim to be, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

import focalnet
from focalnet import weights
from focalnet.card import ModelCard, Preprocessing
from focalnet.errors import CheckpointError, ConfigError

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"image_size": "224"}, "image_size='224' must be a whole number"),
    ({"image_size": 0}, "image_size=0 must be a whole number of pixels, 1 or more"),
    ({"image_size": True}, "image_size=True"),
    ({"image_size": 224.5}, "image_size=224.5"),
    ({"max_size": -1}, "max_size=-1"),
    ({"crop_pct": 0.0}, "crop_pct=0.0 must be above 0"),
    ({"crop_pct": float("nan")}, "crop_pct=nan"),
    ({"crop_pct": None}, "crop_pct=None"),
    ({"interpolation": "lanczos"}, "must be one of bicubic, bilinear, nearest"),
    ({"mean": 0.5}, "mean=0.5 must be a finite number for each channel"),
    ({"mean": (0.5, "0.5", 0.5)}, "mean="),
    ({"mean": ()}, "mean=()"),
    ({"mean": (0.5,)}, "as many values as mean=(0.5,)"),
    ({"std": (0.0, 1.0, 1.0)}, "above 0"),
    ({"std": (1.0, float("inf"), 1.0)}, "std="),
]


@pytest.mark.parametrize(("values", "says"), WRONG)
def test_wrong_preprocessing(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        Preprocessing(**values)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"name": None}, "name=None must be a string"),
        ({"licence": 3}, "licence=3 must be a string"),
        ({"class_names": "abc"}, "class_names must be a tuple of strings, not 'abc'"),
        ({"class_names": (1, 2)}, "class_names"),
        ({"metrics": {"top1": "88"}}, "metrics must be numbers by name"),
        ({"metrics": [88.0]}, "metrics must be numbers by name"),
        ({"preprocessing": {"image_size": 32}}, "preprocessing must be a Preprocessing"),
    ],
)
def test_wrong_cards(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        ModelCard(**{"name": "x", **values})
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("card", "class_names"), "ab"),
        (("card", "class_names"), [1, 2]),
        (("card", "name"), 5),
        (("card", "metrics"), {"top1": None}),
        (("card", "preprocessing", "image_size"), "32"),
        (("card", "preprocessing", "std"), [0, 0, 0]),
        (("card", "preprocessing", "interpolation"), None),
    ],
)
def test_a_header_that_was_edited_is_refused_by_its_file(path: tuple[str, ...], value: Any, tmp_path: Path) -> None:
    model = focalnet.create_model("focalnet_nano", num_classes=2)
    file = weights.save(model, tmp_path / "x.safetensors")
    with safe_open(file, framework="pt") as opened:
        header = json.loads(opened.metadata()["focalnet"])
    place = header
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    save_file(model.state_dict(), file, metadata={"focalnet": json.dumps(header)})
    with pytest.raises(CheckpointError, match=r"x\.safetensors: ") as error:
        focalnet.load(file)
    assert path[-1] in str(error.value)


def test_the_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    model = focalnet.create_model("focalnet_nano", num_classes=2)
    model.card = ModelCard(name='a "quoted" näme\u2028\x1f', class_names=("Käfer", "\x1b[31mred"))
    files = [weights.save(model, tmp_path / f"{i}.safetensors").read_bytes() for i in range(8)]
    assert len(set(files)) == 1
    assert focalnet.load(tmp_path / "0.safetensors").card == model.card
