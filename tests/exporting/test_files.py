"""Exported files: prediction with them, with and without PyTorch, the command line, and bad input."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import focalnet
from focalnet.card import Preprocessing
from focalnet.cli.main import main
from focalnet.data.preprocess import preprocess as by_torch
from focalnet.errors import CheckpointError, ConfigError, ExportError, FrozenError, MissingDependency
from focalnet.models.classifier import Classifier
from focalnet.results import MultiLabel
from focalnet.runtime import Predictor as Runtime
from focalnet.runtime import read_header
from focalnet.runtime.header import EXTRA_FILE, Header
from focalnet.runtime.preprocess import preprocess
from focalnet.runtime.results import results
from tests.docs.pages import PAGES, code
from tests.docs.pages import commands as commands_of
from tests.exporting.conftest import Case
from tests.exporting.networks import network


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """An image of 90 x 70 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    Image.fromarray(pixels).resize((90, 70)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_the_predictor_takes_files(classifier: Case, photo: Path, format: str) -> None:
    exported = getattr(classifier, format)
    expected = focalnet.Predictor(classifier.model)(photo)
    actual = focalnet.Predictor(exported.path)(photo)
    assert actual.names == expected.names
    assert actual.scores == pytest.approx(expected.scores, abs=1e-5)
    assert exported.differences["logits"] < 1e-4
    assert actual.draw().size == expected.draw().size


def test_several_classes_stay_several(photo: Path, tmp_path: Path) -> None:
    model = network("classifier", multi_label=True, embed_dim=8, depths=(1, 1, 1, 1))
    exported = focalnet.export(model, tmp_path / "several.onnx")
    assert exported.header.output == "multilabel"
    for least in (0.0, 0.5, 0.9):
        expected = focalnet.Predictor(model, min_score=least)(photo)
        assert isinstance(expected, MultiLabel)
        for predictor in (focalnet.Predictor(exported.path, min_score=least), Runtime(exported.path, min_score=least)):
            actual = predictor(photo)
            assert isinstance(actual, MultiLabel)
            assert actual.names == expected.names
            assert actual.scores == pytest.approx(expected.scores, abs=1e-5)
    assert Runtime(exported.path)(photo).names == focalnet.Predictor(model)(photo).names


RUN = """
import sys
class Others:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[3].split(","):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Others())
from focalnet.runtime import Predictor
result = Predictor(sys.argv[1])(sys.argv[2])
print(result.labels, max(result.scores), result.summary()[0])
assert "torch" not in sys.modules
"""


def test_without_torch(classifier: Case, photo: Path) -> None:
    blocked = "torch,torchvision,timm,safetensors,matplotlib,huggingface_hub,typer,yaml,onnx,onnxscript,scipy,lightning"
    command = [sys.executable, "-c", RUN, str(classifier.onnx.path), str(photo), blocked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = focalnet.Predictor(classifier.model)(photo)
    assert done.stdout.startswith(f"{expected.labels} {expected.scores[0]:.4f}"[:-2])
    assert expected.summary()[0] in done.stdout


@pytest.mark.parametrize("size", [(70, 90), (33, 200), (3, 120), (64, 64)])
@pytest.mark.parametrize("max_size", [None, 160])
def test_preprocessing_without_torch(size: tuple[int, int], max_size: int | None) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    image = Image.fromarray(pixels)
    card = focalnet.load("focalnet_nano.cifar10").card.preprocessing
    preprocessing = type(card)(image_size=64, max_size=max_size)
    expected, actual = by_torch(image, preprocessing).numpy(), preprocess(image, preprocessing)
    assert actual.shape == expected.shape
    levels = np.abs(actual - expected) * 255 * 0.225
    assert levels.max() < (1e-3 if max_size is None else 1.2)


@pytest.mark.parametrize("size", [(30, 400), (90, 70), (7, 9)])
def test_an_image_is_squashed_as_by_pytorch(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    image = Image.fromarray(pixels)
    how = Preprocessing(image_size=(32, 48), crop_pct=0.9, fit="squash")
    expected, actual = by_torch(image, how).numpy(), preprocess(image, how)
    assert actual.shape == expected.shape == (3, 32, 48)
    assert np.abs(actual - expected).max() < 1e-5


def test_metadata_of_both_formats(classifier: Case) -> None:
    for exported in (classifier.onnx, classifier.torch):
        assert read_header(exported.path) == exported.header
        assert exported.header.card == classifier.model.card
    assert classifier.onnx.header.sha256 == classifier.torch.header.sha256
    other = network("classifier")
    with torch.no_grad():
        other.head.bias.add_(1)
    assert focalnet.exporting.exporting.weights_hash(other) != classifier.onnx.header.sha256


@pytest.mark.parametrize("opset", [19, 20])
def test_other_opsets(tmp_path: Path, opset: int) -> None:
    exported = network("classifier", depths=(1, 1), focal_windows=(3, 3), focal_levels=(1, 1)).export(
        tmp_path / "model.onnx", opset=opset
    )
    assert onnx.load(exported.path).opset_import[0].version == opset


@pytest.mark.parametrize(
    ("path", "options", "says"),
    [
        ("model.bin", {}, "model.bin: must end in .onnx, .xml or .pt2, or give format"),
        ("model.pt2", {"format": "onnx"}, "a file of the format onnx must end in .onnx"),
        ("model.onnx", {"format": "tensorrt"}, 'format="tensorrt" must be "onnx", "openvino" or "torch"'),
        ("model.onnx", {"opset": 11}, "opset=11 must be one of 18, 19, 20"),
        ("model.pt2", {"opset": 18}, "opset=18 is an option of the format onnx only"),
    ],
)
def test_options_that_cannot_work(path: str, options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        network("classifier").export(tmp_path / path, **options)
    assert list(tmp_path.iterdir()) == []


def test_models_that_cannot_be_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    for model, says in (
        (network("classifier", num_classes=0), "this Classifier has no classes to predict"),
        (torch.nn.Linear(1, 1), "this Linear has no classes to predict"),
        (network("classifier").bfloat16(), "export model.float"),
    ):
        with pytest.raises(ConfigError, match=says):
            focalnet.export(model, path)
    optimized = network("classifier")
    focalnet.optimize(optimized)
    with pytest.raises(FrozenError, match="undo"):
        optimized.export(path)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingDependency, match=r"onnxscript.*focalnet\[export\]"):
        network("classifier").export(path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_disagrees_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predict_tensors = Classifier.predict_tensors

    def wrong(self: Classifier, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: value + 1e-3 for name, value in predict_tensors(self, *inputs).items()}

    monkeypatch.setattr(Classifier, "predict_tensors", wrong)
    model = network("classifier").train()
    with pytest.raises(ExportError, match=r"not written, because it disagrees with PyTorch: logits differ by 0\.001"):
        model.export(tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []
    assert model.training
    assert model.head.training


def test_files_that_cannot_be_read(classifier: Case, tmp_path: Path) -> None:
    for name, content, says in (
        ("empty.onnx", b"", "ONNX Runtime cannot read it"),
        ("cut.onnx", classifier.onnx.path.read_bytes()[:1000], "ONNX Runtime cannot read it"),
        ("empty.pt2", b"", "cannot be read as an exported program"),
        ("cut.pt2", classifier.torch.path.read_bytes()[:1000], "cannot be read as an exported program"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=says):
            focalnet.Predictor(tmp_path / name)
    with pytest.raises(CheckpointError, match="no such file"):
        focalnet.Predictor(tmp_path / "missing.onnx")
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("archive/extra/other.json", "{}")
    with pytest.raises(CheckpointError, match="no metadata of ours"):
        focalnet.Predictor(tmp_path / "other.pt2")
    with zipfile.ZipFile(tmp_path / "header.pt2", "w") as archive:
        archive.writestr(f"archive/extra/{EXTRA_FILE}", classifier.torch.header.to_json())
    with pytest.raises(CheckpointError, match="PyTorch cannot read it"):
        focalnet.Predictor(tmp_path / "header.pt2")


def test_a_graph_with_other_names(classifier: Case, tmp_path: Path) -> None:
    graph = onnx.load(classifier.onnx.path)
    for node in graph.graph.node:
        node.input[:] = ["pixels" if name == "images" else name for name in node.input]
    graph.graph.input[0].name = "pixels"
    onnx.save(graph, tmp_path / "model.onnx")
    with pytest.raises(CheckpointError, match="its inputs are pixels, and images by its metadata"):
        focalnet.Predictor(tmp_path / "model.onnx")


class Evil:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('it ran')",)


@pytest.mark.parametrize(
    "entry", ["data/sample_inputs/model.pt", "data/weights/model.pt", "data/aotinductor/model/a.so"]
)
def test_programs_that_would_run_code(classifier: Case, tmp_path: Path, entry: str) -> None:
    path = tmp_path / "evil.pt2"
    with zipfile.ZipFile(classifier.torch.path) as old, zipfile.ZipFile(path, "w") as new:
        folder = old.namelist()[0].split("/")[0]
        for name in old.namelist():
            if name != f"{folder}/data/{entry}":
                new.writestr(name, old.read(name))
        new.writestr(f"{folder}/data/{entry}", pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match="could run code when it is loaded"):
        focalnet.Predictor(path)


def test_programs_with_pickled_weights(classifier: Case, tmp_path: Path) -> None:
    path = tmp_path / "evil.pt2"
    with zipfile.ZipFile(classifier.torch.path) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("_config.json"):
                content = content.replace(b'"use_pickle": false', b'"use_pickle": true')
            new.writestr(name, content)
    with pytest.raises(CheckpointError, match="could run code when it is loaded"):
        focalnet.Predictor(path)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"format": 1', '"format": 2', "was exported in another format than 1; install a later focalnet, or export it"),
        ('"format": 1', '"format": 0', "was exported in another format than 1; export it again"),
        ('"num_classes": 3', '"num_classes": 0', "its metadata are damaged"),
        ('"output": "classification"', '"output": "x"', "its metadata are damaged"),
        ('"crop_pct"', '"other"', "its metadata are damaged"),
        ("{", "", "its metadata are damaged"),
    ],
)
def test_metadata_that_cannot_be_read(classifier: Case, old: str, new: str, says: str) -> None:
    text = classifier.onnx.header.to_json()
    assert old in text
    with pytest.raises(CheckpointError, match=says):
        Header.from_json(text.replace(old, new, 1), Path("x.onnx"))


HEADER = {
    **{"output": "classification", "family": "classifier", "num_classes": 3, "inputs": ["images"], "sha256": "0"},
    **{"outputs": ["logits"], "size_divisor": 1, "least_side": 32, "thresholds": {}, "version": "1", "format": 1},
    "card": {"name": "x", "class_names": ["a", "b", "c"], "preprocessing": {"image_size": 64}},
}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_classes": 2}, "the network has 2 classes, but its card has 3"),
        ({"card": {**HEADER["card"], "class_names": [], "category_ids": [1, 2]}}, "its card has 2"),  # type: ignore[dict-item]
        ({"output": "detection"}, "a network for detection has no boxes, labels, scores"),
        ({"output": "semantic"}, "a network for semantic has no labels"),
        ({"output": ["detection"]}, "invalid value"),
        ({"thresholds": [1]}, "must be values by name"),
        ({"thresholds": {"max_per_image": "x"}}, "must be a finite number"),
        ({"thresholds": {"score_threshold": float("inf")}}, "must be a finite number"),
        ({"size_divisor": 10**9}, "must be at most 4096"),
        ({"sha256": 3}, "invalid value"),
    ],
)
def test_metadata_that_contradict_themselves(change: dict[str, Any], says: str) -> None:
    assert Header.from_json(json.dumps(HEADER), Path("x.onnx")).class_names == ("a", "b", "c")
    with pytest.raises(CheckpointError, match=rf"x\.onnx: its metadata are damaged .*{says}"):
        Header.from_json(json.dumps({**HEADER, **change}), Path("x.onnx"))


def test_metadata_of_any_depth_and_logits_of_other_classes() -> None:
    with pytest.raises(CheckpointError, match="damaged"):
        Header.from_json("[" * 10**5, Path("x.onnx"))
    header = Header.from_json(json.dumps(HEADER), Path("x.onnx"))
    with pytest.raises(CheckpointError, match="computes 5 logits, and its metadata are of 3 classes"):
        results(header, {"logits": np.zeros((1, 5), np.float32)}, [(64, 64)])


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_no_weight_changes_silently(classifier: Case, tmp_path: Path, format: str) -> None:
    source = getattr(classifier, format).path
    path, content = tmp_path / f"x{source.suffix}", source.read_bytes()
    for weight in list(classifier.model.state_dict().values())[::7]:
        start = content.find(weight.numpy().tobytes())
        if start < 0:  # it is stored transposed, or folded into another
            continue
        changed = bytearray(content)
        changed[start + weight.numel() * 2] ^= 1
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match="was damaged or changed after it was exported"):
            focalnet.Predictor(path)
        assert main(["predict", "x.png", "--model", str(path), "--out", str(tmp_path / "out")]) == 2
    assert path.exists()


@pytest.mark.parametrize("digest", [None, "", "0" * 64, "x" * 300])
def test_graphs_that_another_program_wrote(classifier: Case, tmp_path: Path, digest: str | None) -> None:
    """With our metadata, of which the digest is a part; and with digests that cannot be."""
    model = onnx.load(classifier.onnx.path)
    model.graph.doc_string = "changed"
    for entry in model.metadata_props:
        if entry.key == "focalnet_sha256" and digest is not None:
            entry.value = digest
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(CheckpointError, match=r"x\.onnx: was damaged or changed after it was exported"):
        Runtime(tmp_path / "x.onnx")


def test_a_compressed_program(classifier: Case, tmp_path: Path) -> None:
    path = tmp_path / "x.pt2"
    with (
        zipfile.ZipFile(classifier.torch.path) as old,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(CheckpointError, match=r"x\.pt2: is compressed, .* export the model again"):
        focalnet.Predictor(path)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx", ".xml"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"x{suffix}")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        focalnet.Predictor(tmp_path / f"x{suffix}")


@pytest.mark.parametrize("options", [{"batch_size": "2"}, {"top_k": 2.5}, {"min_score": "0.3"}, {"batch_size": 2**70}])
@pytest.mark.parametrize("predictor", [focalnet.Predictor, Runtime])
def test_options_of_another_type_are_named(predictor: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"{next(iter(options))}=.* must be "):
        predictor("x.onnx", **options)


def test_the_commands_of_the_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo: Path, capsys: Any) -> None:
    """Commands and code of the pages on export, in one folder; an export that several pages have is run once."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    photo.rename(tmp_path / "images/photo.png")
    targets = [page for page in PAGES if page.startswith("docs/deploy/")]
    if importlib.util.find_spec("openvino") is None:
        targets.remove("docs/deploy/openvino.md")
    assert len(targets) >= 2
    commands = {
        command.text: command.arguments for page in ["docs/export.md", *targets] for command in commands_of(page)
    }
    for text, arguments in commands.items():
        runnable = arguments[0] != "benchmark" and (len(targets) == 3 or "nano.xml" not in text)
        assert not runnable or main(arguments) == 0, text
    said = capsys.readouterr().out
    assert "wrote nano.onnx" in said
    assert "largest difference from PyTorch: logits" in said
    assert (tmp_path / "out/predictions.json").exists()
    assert main(["export", "focalnet_nano.cifar10", "--out", "nano.onnx"]) == 2
    assert "nano.onnx: already exists; overwrite it with --force" in capsys.readouterr().err
    for block in (block for page in targets for block in code(page)):
        exec(compile(block.text, f"{block.page}:{block.line}", "exec"), {})
