"""Headers of our files, descriptions beside foreign ones, and names of tensors, changed at random: read or refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from focalnet import weights
from focalnet.card import ModelCard, Preprocessing
from focalnet.errors import CheckpointError
from focalnet.models import Model
from focalnet.weights.checkpoint import HEADER, _read_native
from focalnet.zoo import load
from tests.attacks.fuzz import STRANGE, damaged, fuzz, mutated
from tests.models.small import METHODS, config, mask2former, upernet
from tests.weights.small import PLAIN, classifier

BUILDERS: dict[str, Callable[[], Model[Any, Any]]] = {
    "classifier": lambda: classifier(PLAIN),
    **{method: (lambda method=method: config(method).build()) for method in METHODS},
    "upernet": lambda: upernet().build(),
    "mask2former": lambda: mask2former().build(),
}


def saved(tmp_path: Path, network: str) -> tuple[Path, dict[str, torch.Tensor], dict[str, Any]]:
    """A file of ours, its tensors, and its description."""
    model = BUILDERS[network]()
    names = tuple(f"class {i}" for i in range(model.config.num_classes))
    model.card = ModelCard(name="x", class_names=names, preprocessing=Preprocessing(image_size=64), metrics={"a": 1.0})
    path = weights.save(model, tmp_path / "model.safetensors")
    return path, model.state_dict(), json.loads(weights.files.read_tensors(path).metadata[HEADER])


def describe(path: Path, tensors: dict[str, torch.Tensor], header: Any) -> None:
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(tensors, path, metadata={HEADER: text})


@pytest.mark.parametrize("network", BUILDERS)
def test_mutated_descriptions(tmp_path: Path, network: str, attacks: Callable[[int], None]) -> None:
    path, tensors, header = saved(tmp_path, network)

    def attempt(draw: random.Random) -> None:
        describe(path, tensors, mutated(header, draw))
        load(path)

    attacks(fuzz(attempt, named=str(path), tries=100 if network == "classifier" else 40))


def leaves(value: Any, *place: Any) -> list[tuple[Any, ...]]:
    if not isinstance(value, (dict, list)) or not value:
        return [place]
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return [place, *(found for key, inner in pairs for found in leaves(inner, *place, key))]


def changed(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return new
    inner = changed(value[place[0]], place[1:], new)
    if isinstance(value, dict):
        return {**value, place[0]: inner}
    return [*value[: place[0]], inner, *value[place[0] + 1 :]]


def test_each_value_of_a_description_is_replaced_by_each_strange_one(
    tmp_path: Path, attacks: Callable[[int], None]
) -> None:
    path, _, header = saved(tmp_path, "classifier")
    raw = weights.files.read_tensors(path)
    tried = 0
    for place in leaves(header):
        for new in STRANGE:
            text = json.dumps(changed(header, place, new))
            tried += fuzz(lambda _, text=text: _read_native(raw, text, None, {}), named="", tries=1)
    attacks(tried)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        '{"kind": ' + "9" * 5000 + "}",
        '{"kind": "classifier", "config": {}}',
        "\ufeff",
    ],
)
def test_a_description_that_is_none(tmp_path: Path, header: str, attacks: Callable[[int], None]) -> None:
    attacks(1)
    path, tensors, _ = saved(tmp_path, "classifier")
    describe(path, tensors, header)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: its header is damaged") as error:
        load(path)
    assert "\n" not in str(error.value)


COUNTS = {
    "mask_rcnn": ["mask_convs", "roi_levels"],
    "atss": ["convs"],
    "sparse_rcnn": ["stages", "class_layers", "box_layers"],
    "dino": ["encoder_layers", "decoder_layers", "scales"],
    "mask2former": ["encoder_layers", "decoder_layers", "levels"],
}


@pytest.mark.parametrize(("network", "count"), [(n, c) for n, counts in COUNTS.items() for c in counts])
def test_a_description_of_a_billion_layers(
    tmp_path: Path, network: str, count: str, attacks: Callable[[int], None]
) -> None:
    attacks(2)
    path, tensors, header = saved(tmp_path, network)
    for many in (10**6, 10**9):
        describe(path, tensors, changed(header, ("config", count), many))
        with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
            load(path)


@pytest.mark.parametrize("levels", [10**6, 10**9])
def test_a_description_of_a_pyramid_of_a_billion_levels(tmp_path: Path, levels: int) -> None:
    path, tensors, header = saved(tmp_path, "mask_rcnn")
    describe(path, tensors, changed(header, ("config", "neck", "levels"), levels))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
        load(path)


@pytest.mark.parametrize("layout", ["huggingface", "timm"])
def test_mutated_descriptions_of_others(tmp_path: Path, layout: str, attacks: Callable[[int], None]) -> None:
    path, _, _ = saved(tmp_path, "classifier")
    weights.export(weights.read(path), tmp_path / "hub" / "model.safetensors", layout)
    beside = tmp_path / "hub" / "config.json"
    described = json.loads(beside.read_text()) if beside.exists() else TIMM

    def attempt(draw: random.Random) -> None:
        text = json.dumps(mutated(described, draw)).encode()
        beside.write_bytes(text if draw.random() < 0.7 else damaged(text, draw))
        weights.read(tmp_path / "hub", post_norm=False)

    attacks(fuzz(attempt, named="model.safetensors"))


TIMM = {
    "architecture": "focalnet_of_mine",
    "num_classes": 5,
    "label_names": ["a", "b", "c", "d", "e"],
    "pretrained_cfg": {
        **{"input_size": [3, 96, 96], "crop_pct": 0.9, "interpolation": "bilinear"},
        **{"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
    },
}


def renamed(key: str, draw: random.Random) -> str:
    """A key with one of its parts replaced."""
    parts = key.split(".")
    place = draw.randrange(len(parts))
    strange = ["9" * 5000, "-1", "999999", "٣", "", "x", "0.0", "\x1b[2J", "weight", "backbone", "layers"]
    return ".".join([*parts[:place], draw.choice(strange), *parts[place + 1 :]])


@pytest.mark.parametrize("network", BUILDERS)
def test_tensors_with_other_names_and_shapes(tmp_path: Path, network: str, attacks: Callable[[int], None]) -> None:
    _, tensors, _ = saved(tmp_path, network)
    path = tmp_path / "theirs.pth"

    def attempt(draw: random.Random) -> None:
        changed = dict(tensors)
        for _ in range(draw.randint(1, 3)):
            key = draw.choice(list(changed))
            tensor = changed.pop(key)
            match draw.randrange(4):
                case 0:
                    changed[renamed(key, draw)] = tensor
                case 1:
                    changed[key] = tensor.flatten()[:0]
                case 2:
                    changed[key] = torch.zeros([draw.choice([0, 1, 3]) for _ in range(draw.randrange(5))])
                case _:
                    changed[key] = torch.zeros(1, dtype=torch.bool)
        torch.save({"model": changed}, path)
        weights.read(path, post_norm=False)

    attacks(fuzz(attempt, named="theirs.pth", tries=40))
    torch.save({"layers.%s.blocks.0.modulation.f.weight" % ("9" * 5000): torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"theirs\.pth: ") as error:
        load(path)
    assert "\n" not in str(error.value)


def test_a_card_as_it_is_saved_is_read(tmp_path: Path) -> None:
    for network in BUILDERS:
        path, _, header = saved(tmp_path, network)
        model = load(path)
        fields = {name: value for name, value in asdict(model.card).items() if name != "category_ids"}  # none here
        assert fields["preprocessing"].pop("fit") == "crop"  # not written, so that earlier versions read the file
        assert json.loads(json.dumps(fields)) == header["card"]
