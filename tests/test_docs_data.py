"""The commands of docs/data/masks.md, classes.md, labels.md, checkpoints.md and inputs.md do what the pages say."""

from __future__ import annotations

import gc
import json
import re
import shlex
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from safetensors.torch import save_file

import focalnet
from focalnet import weights
from focalnet.cli.main import main
from focalnet.data import ClassificationData, MultiLabelData, SemanticData
from focalnet.results import Classification
from tests.weights.small import CONFIGS, classifier

PAGES = Path(__file__).parents[1] / "docs/data"
OBJECT = np.zeros((64, 96), dtype=np.int64)
OBJECT[10:30, 10:40] = 1


def blocks(page: str, language: str = "") -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", (PAGES / page).read_text(), re.MULTILINE | re.DOTALL)
    return [content for name, content in found if name == language]


def commands(page: str) -> list[str]:
    lines = (line.partition("  #")[0].strip() for block in blocks(page) for line in block.splitlines())
    return [line for line in lines if line.startswith("focalnet ") and "FOLDER" not in line]


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (96, 64)).save(path)


def options(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """The folder and the other options of ``data`` of a command of ``fit``."""
    names = [name.removeprefix("--data.") for name in arguments[::2]]
    assert [f"--data.{name}" for name in names] == arguments[::2]
    values = dict(zip(names, map(yaml.safe_load, arguments[1::2]), strict=True))
    return values.pop("root"), values


# --- masks


def write_masks(root: Path) -> None:
    """The folders that the page names."""
    three = OBJECT * 128
    three[40:60] = 255
    colors = np.zeros((64, 96, 3), np.uint8)
    colors[OBJECT == 1] = (192, 192, 128)
    gray = {"binary": OBJECT * 255, "gray": three, "beside": OBJECT, "stems": OBJECT, "other": OBJECT}
    masks = {name: PIL.Image.fromarray(values.astype(np.uint8)) for name, values in gray.items()}
    masks["colors"] = PIL.Image.fromarray(colors)
    text = (PAGES / "masks.md").read_text()
    for name, picture, mask in re.findall(r"^(\w+)/(\S+\.jpg) +\w+/(\S+\.(?:png|npy))", text, re.MULTILINE):
        for split in ("train", "valid") if name == "beside" else ("train", "val"):
            for number in range(4):
                named = (place.replace("train", split).replace("0", str(number), 1) for place in (picture, mask))
                picture_file, mask_file = (root / name / place for place in named)
                image(picture_file)
                mask_file.parent.mkdir(parents=True, exist_ok=True)
                if mask_file.suffix == ".npy":
                    np.save(mask_file, OBJECT)
                else:
                    masks[name].save(mask_file)
    (root / "colors/classes.json").write_text(blocks("masks.md", "json")[0])


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("masks")
    write_masks(root)
    return root


@pytest.mark.parametrize("command", commands("masks.md"))
def test_a_command_on_masks(command, masks, monkeypatch, capsys):
    monkeypatch.chdir(masks)
    _, name, *arguments = shlex.split(command)
    classes = 3 if "gray" in arguments else 2
    if name == "fit":
        assert arguments[0] == "segmentation/finetune"
        root, given = options(arguments[1:])
        data = SemanticData(root, batch_size=1, num_workers=0, **given)
        data.setup("fit")
        assert data.num_classes == classes
        assert {label for split in data.samples.values() for label in _labels(split)} == set(range(classes))
    else:
        assert main([name, *arguments]) == 0
        assert "9.8 % " in capsys.readouterr().err


def _labels(samples: Any) -> set[int]:
    return set(np.unique(samples.pairs.labels(0, samples.rule, None)).tolist())


# --- classes


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("classes")
    for folder in ("pets/train", "pets/val", "plain", "intel/seg_train/seg_train", "intel/seg_test/seg_test"):
        for name in ("cat", "dog"):
            for number in range(5):
                image(root / folder / name / f"{number}.jpg")
    (root / "pets/names.txt").write_text("dog\ncat\thouse cat\nbird\n")
    return root


@pytest.mark.parametrize("command", commands("classes.md"))
def test_a_command_on_classes(command, classes, monkeypatch):
    monkeypatch.chdir(classes)
    _, name, *arguments = shlex.split(command)
    if name == "fit":
        assert arguments[0] == "classification/finetune"
        root, given = options(arguments[1:])
        data = ClassificationData(root, batch_size=1, num_workers=0, **given)
        data.setup("fit")
        assert data.class_names == (("dog", "house cat", "bird") if "class_map" in given else ("cat", "dog"))
        assert [len(data.samples[split]) for split in ("train", "val")] == ([8, 2] if root == "plain" else [10, 10])
        expected = tuple(given.get("image_size", (224, 224)))
        assert next(iter(data.val_dataloader())).images.shape[-2:] == expected
    else:
        assert main([name, *arguments]) == 0


# --- labels


@pytest.mark.parametrize("command", commands("labels.md"))
def test_a_command_on_labels(command, tmp_path, monkeypatch):
    """The tables are those of the page."""
    for block in blocks("labels.md"):
        if not block.startswith("focalnet "):
            name = ""
            for line in block.splitlines():
                place, row = line[:31].strip(), line[31:].partition("  ")[0]
                if place.endswith(".csv"):
                    name = place
                    (tmp_path / name).parent.mkdir()
                elif place:
                    for number in range(3):
                        image(tmp_path / place.replace("0", str(number)))
                if row:
                    with (tmp_path / name).open("a") as table:
                        table.write(f"{row}\n")
    monkeypatch.chdir(tmp_path)
    _, name, recipe, *arguments = shlex.split(command)
    if name == "check-data":
        assert main([name, recipe, *arguments]) == 0
        return
    assert recipe == "classification/multilabel"
    root, given = options(arguments)
    if "label_delimiter" in given:  # which YAML reads as nothing
        given["label_delimiter"] = arguments[arguments.index("--data.label_delimiter") + 1]
    data = MultiLabelData(root, batch_size=1, num_workers=0, **given)
    data.setup("fit")
    assert data.class_names == ("cat", "dog")
    found = {
        int(Path(name).stem): target.tolist()
        for split in data.samples.values()
        for name, target in zip(split.names, split.targets, strict=True)
    }
    assert found == {0: [1, 1], 1: [0, 0], 2: [0, 1]}


# --- checkpoints and inputs


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files in timm's layout, whose names tell what shapes of tensors do not."""
    root = tmp_path_factory.mktemp("checkpoints")
    model = classifier(CONFIGS["four_stages"])
    state = weights.layouts.LAYOUTS["timm"].from_native(model.state_dict(), model.shape)
    torch.save({"state_dict": state}, root / "theirs.pth")
    prefixed = {f"net.{key}": value for key, value in state.items()}
    torch.save({"state_dict": prefixed, "epoch": 3}, root / "lightning.ckpt")
    torch.save({"model_state_dict": state, "optimizer_state_dict": {}}, root / "loop.pt")
    folder = root / "checkpoint-500"
    folder.mkdir()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    keys = list(state)
    parts = {names[0]: keys[:9], names[1]: keys[9:]}
    for name, some in parts.items():
        save_file({key: state[key].contiguous() for key in some}, folder / name)
    index = {"weight_map": {key: name for name, some in parts.items() for key in some}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return root


@pytest.mark.parametrize("code", blocks("checkpoints.md", "python"))
def test_code_on_checkpoints(code, checkpoints, monkeypatch):
    monkeypatch.chdir(checkpoints)
    for line in code.splitlines():
        names: dict[str, Any] = {"focalnet": focalnet}
        exec(line, names)
        channels = int(found[1]) if (found := re.search(r"in_chans=(\d+)", line)) else 3
        outputs = names["model"](torch.zeros(1, channels, 64, 64))
        assert outputs.shape == (1, 3 if "num_classes=3" in line else 5)


def test_commands_on_checkpoints(checkpoints, monkeypatch):
    monkeypatch.chdir(checkpoints)
    for command in commands("checkpoints.md"):
        arguments = shlex.split(command)[1:]
        assert main(arguments) == 0
        assert Path(arguments[2]).is_file()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    for name in ("photos/cat.jpg", "photos/more/dog.jpg", "more/cat.png"):
        image(root / name)
    return root


@pytest.mark.parametrize("command", commands("inputs.md"))
def test_a_command_on_inputs(command, inputs, monkeypatch, capsys):
    monkeypatch.chdir(inputs)
    assert main(shlex.split(command)[1:]) == 0
    assert "photos/cat.jpg" in capsys.readouterr().out


def test_code_on_inputs(inputs, monkeypatch):
    monkeypatch.chdir(inputs)
    names: dict[str, Any] = {"focalnet": focalnet, "PIL": PIL, "numpy": np, "torch": torch}
    code = "".join(blocks("inputs.md", "python"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # for the reader's sake a file is not closed
        exec(code, names)
        gc.collect()
    assert isinstance(names["result"], Classification)
    assert len(names["results"]) == 1  # of the batch, which is the last


def test_the_pages_have_commands():
    assert {page: len(commands(f"{page}.md")) for page in ("masks", "classes", "checkpoints", "inputs")} == {
        "masks": 14, "classes": 9, "checkpoints": 3, "inputs": 3,
    }  # fmt: skip
