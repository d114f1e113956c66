"""OpenVINO's files: what they hold, prediction with them, and files that are refused."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import focalnet
from focalnet import weights
from focalnet.cli.main import main
from focalnet.errors import CheckpointError, ConfigError, ExportError, MissingDependency
from focalnet.exporting import Exported
from focalnet.models import Model
from focalnet.models.classifier import Classifier
from focalnet.runtime import Predictor, read_header
from focalnet.runtime.sessions import digest, store_digest
from tests.exporting.networks import network

pytest.importorskip("openvino")
SMALL = {"depths": (1, 1), "focal_windows": (3, 3), "focal_levels": (1, 1)}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Exported]:
    """A classifier with names that XML and JSON must escape, and its files."""
    model = network("classifier", **SMALL)
    names = ("\"<cat> & dog'", "Größe 犬", "back\\slash")
    model.card = type(model.card)(name="a.b", class_names=names, preprocessing=model.card.preprocessing)
    return model, model.export(tmp_path_factory.mktemp("openvino") / "model.xml")


@pytest.fixture
def files(case: tuple[Model, Exported], tmp_path: Path) -> Path:
    """A copy of the files."""
    for suffix in (".xml", ".bin"):
        shutil.copy(case[1].path.with_suffix(suffix), tmp_path)
    return tmp_path / "model.xml"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """An image of 90 x 70 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    Image.fromarray(pixels).resize((90, 70)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_the_results_of_the_original(case: tuple[Model, Exported], photo: Path) -> None:
    model, exported = case
    assert exported.differences["logits"] < 1e-4
    assert read_header(exported.path) == exported.header
    assert exported.header.card == model.card
    expected = focalnet.Predictor(model)(photo)
    for actual in (focalnet.Predictor(exported.path)(photo), Predictor(exported.path)(photo)):
        assert actual.names == expected.names
        assert actual.scores == pytest.approx(expected.scores, abs=1e-5)


def test_batches_of_any_size(case: tuple[Model, Exported]) -> None:
    model, exported = case
    session = Predictor(exported.path).session
    for batch, height, width in ((1, 64, 96), (5, 131, 77)):
        images = torch.randn(batch, 3, height, width)
        with torch.no_grad():
            expected = model(images)
        first = session({"images": images.numpy()})["logits"]
        session({"images": np.zeros_like(images.numpy())})  # does not change what was returned before
        torch.testing.assert_close(torch.from_numpy(first), expected, rtol=0, atol=1e-4)


def test_the_commands(tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = network("classifier", **SMALL)
    weights.save(model, tmp_path / "model.safetensors")
    path, command = tmp_path / "new" / "model.xml", ["export", str(tmp_path / "model.safetensors"), "--out"]
    assert main([*command, str(path), "--format", "openvino"]) == 0
    assert "largest difference from PyTorch: logits" in capsys.readouterr().out
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.bin", "model.xml"]
    assert main([*command, str(path)]) == 2
    assert "already exists; overwrite it with --force" in capsys.readouterr().err
    predicted = []
    for file in (path, tmp_path / "model.safetensors"):
        out = tmp_path / f"out{file.suffix}"
        assert main(["predict", str(photo), "--model", str(file), "--out", str(out)]) == 0
        predicted.append(json.loads((out / "predictions.json").read_text()))
    ours, theirs = (one["predictions"][0].pop("top") for one in predicted)
    assert [{**one, "score": pytest.approx(one["score"], abs=1e-5)} for one in theirs] == ours
    for one in predicted:
        one.pop("model")
        one["predictions"][0].pop("picture")
    assert predicted[0] == predicted[1]


def changed(path: Path, old: str, new: str, *, signed: bool = False) -> None:
    """Replaces text in an .xml file; if signed, as if it had been exported so."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    if signed:
        store_digest(path)


def lengthened(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.unlink(), r"model\.xml: no such file"),
        (lambda path: path.with_suffix(".bin").unlink(), r"model\.bin: no such file; it has the weights of model\.xml"),
        (lambda path: path.write_bytes(b""), "OpenVINO cannot read it"),
        (lambda path: path.write_text("<annotation><filename>a.jpg</filename></annotation>"), "OpenVINO cannot read"),
        (
            lambda path: path.write_bytes(path.read_bytes().partition(b"<edges>")[0]),
            "OpenVINO cannot read it: Start-end tags mismatch",
        ),
        (lambda path: path.with_suffix(".bin").write_bytes(bytes(9)), "OpenVINO cannot read it: Incorrect weights"),
        (lambda path: lengthened(path.with_suffix(".bin")), r"it or model\.bin was changed"),
        (lambda path: changed(path, '="images"', '="pixels"'), r"it or model\.bin was changed"),
        (
            lambda path: changed(path, '="images"', '="pixels"', signed=True),
            "its inputs are pixels, and images by its metadata",
        ),
        (lambda path: changed(path, "focalnet_sha256", "other"), "has no metadata of ours"),
        (lambda path: changed(path, "<focalnet ", "<other "), "has no metadata of ours"),
        (lambda path: changed(path, "format&quot;: 1", "format&quot;: 2"), "was exported in another format than 1"),
        (lambda path: changed(path, "num_classes&quot;: 3", "num_classes&quot;: 0"), "its metadata are damaged"),
    ],
)
def test_files_that_cannot_be_read(files: Path, damage: Any, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage(files)
    for open_file in (focalnet.Predictor, Predictor):
        with pytest.raises(CheckpointError, match=says) as caught:
            open_file(files)
        assert "\n" not in str(caught.value)
    assert main(["predict", "docs/images/cat.jpg", "--model", str(files)]) == 2
    assert re.search(says, capsys.readouterr().err)


def test_files_of_two_exports(files: Path) -> None:
    expected = digest(files)
    store_digest(files)
    assert digest(files) == expected
    content = bytearray(files.with_suffix(".bin").read_bytes())
    content[-5] ^= 1
    files.with_suffix(".bin").write_bytes(content)
    with pytest.raises(CheckpointError, match="do not belong together; export the model again"):
        Predictor(files)


def test_what_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = network("classifier", **SMALL), tmp_path / "model.xml"
    with pytest.raises(ConfigError, match="opset=18 is an option of the format onnx only"):
        model.export(path, opset=18)
    (tmp_path / "model.bin").write_bytes(b"weights of another model")
    with pytest.raises(ConfigError, match=r"model\.bin: exists, and is where the weights of model\.xml belong"):
        model.export(path)
    path.write_text("an earlier export")
    predict_tensors = Classifier.predict_tensors

    def wrong(self: Classifier, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: value + 1e-3 for name, value in predict_tensors(self, *inputs).items()}

    monkeypatch.setattr(Classifier, "predict_tensors", wrong)
    with pytest.raises(ExportError, match="not written, because it disagrees with PyTorch"):
        model.export(path)
    assert path.read_text() == "an earlier export"
    assert (tmp_path / "model.bin").read_bytes() == b"weights of another model"
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependency, match=r"openvino.*focalnet\[openvino\]"):
        model.export(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.bin", "model.xml"]


def test_a_missing_package(files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert main(["predict", "docs/images/cat.jpg", "--model", str(files)]) == 2
    assert 'pip install "focalnet[openvino]"' in capsys.readouterr().err
