"""Int8 files of OpenVINO: what is quantized by NNCF, and what the files and predictors do."""

from __future__ import annotations

import itertools
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import focalnet
from focalnet import weights
from focalnet.card import ModelCard, Preprocessing
from focalnet.cli.main import main
from focalnet.errors import CheckpointError, ExportError, MissingDependency
from focalnet.exporting.quantization.changes import change
from focalnet.exporting.quantization.openvino_layers import OpenVinoLayers
from focalnet.inference.exported import ExportedNetwork
from focalnet.models import Model
from focalnet.nn.fpn import FPNConfig
from focalnet.runtime import Predictor as RuntimePredictor
from focalnet.runtime import read_header
from focalnet.runtime.sessions import file_size
from tests.exporting.networks import network

NAMES = ("class a", "class b", "class c")
SPLITS = {"train": 24, "val": 12}


def image(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(pixels).resize((64, 64))


def test_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MissingDependency, match=r'"nncf", which is not installed: pip install "focalnet\[openvino\]"'):
        network("classifier").export(tmp_path / "m.xml", int8=True, data=tmp_path)
    command = ["export", "focalnet_nano.cifar10", "--out", str(tmp_path / "m.xml"), "--int8", "--data", str(tmp_path)]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert 'pip install "focalnet[openvino]"' in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def model() -> Model[Any, Any]:
    """A classifier that sees its three classes about equally often."""
    pytest.importorskip("openvino")
    pytest.importorskip("nncf", reason="NNCF writes int8 files of OpenVINO; the extra openvino installs it")
    model = network("classifier", depths=(1, 1), focal_windows=(3, 3), focal_levels=(1, 1))
    preprocessing = Preprocessing(image_size=64, crop_pct=1.0)
    model.card = ModelCard(name="tiny.test", class_names=NAMES, preprocessing=preprocessing)
    logits = torch.stack([one.logits for one in focalnet.Predictor(model)([image(i) for i in range(24)])])
    with torch.no_grad():
        model.head.bias -= logits.mean(0)
    return model


@pytest.fixture(scope="module")
def exported(model: Model[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An int8 file that the command line wrote for images of the classes that the model predicts, and what it said."""
    folder = tmp_path_factory.mktemp("int8")
    predictor, seeds = focalnet.Predictor(model), itertools.count()
    for split, count in SPLITS.items():
        wanted = dict.fromkeys(NAMES, count // len(NAMES))
        while any(wanted.values()):
            pixels = image(next(seeds))
            name = predictor(pixels).names[0]
            if wanted[name]:
                wanted[name] -= 1
                path = folder / "data" / split / name / f"{wanted[name]}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels.save(path)
    weights.save(model, folder / "model.safetensors")
    command = ["export", str(folder / "model.safetensors"), "--out", str(folder / "m.xml"), "--int8"]
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("focalnet.cli.export.say", lambda *said: lines.extend(map(str, said)))
        patch.setattr("focalnet.cli.export.show_progress", lambda: None)
        assert main([*command, "--data", str(folder / "data"), "--calibration", "20"]) == 0
    return folder / "m.xml", "\n".join(lines)


def test_the_files_and_the_report(exported: tuple[Path, str]) -> None:
    path, said = exported
    assert sorted(file.name for file in path.parent.iterdir() if file.stem[0] == "m" and file.suffix[1:] != "data") == [
        "m.bin",
        "m.int8.json",
        "m.xml",
        "model.safetensors",
    ]
    report = json.loads(path.with_suffix(".int8.json").read_text())
    assert report["calibration_images"] == 20
    assert report["images"] == SPLITS["val"]
    assert report["float32"] == {"top1": 100.0}
    assert report["float32"]["top1"] - report["int8"]["top1"] <= 0.3
    assert report["bytes"]["int8"] == file_size(path) > path.stat().st_size
    assert set(report["changes_by_ranges"]) == {"minmax", "percentile", "histogram"}
    changes = [layer["change"] for layer in report["layers"]]
    assert changes == sorted(changes, reverse=True)
    assert changes[-1] > 0
    names = {layer["name"] for layer in report["layers"]}
    assert {"patch_embed.proj", "layers.0.blocks.0.modulation.f", "layers.1.blocks.0.mlp.fc2", "head"} <= names
    assert not any("focal_layers" in name for name in names)
    header = read_header(path)
    assert header.quantization is not None
    assert header.quantization["int8"] == report["int8"]
    assert header.quantization["kept"] == report["kept"]
    assert "top-1: 100.00 % in float32" in said
    assert report["layers"][0]["name"] in said
    assert "nncf" not in path.read_text()


def test_nodes_of_the_file(exported: tuple[Path, str]) -> None:
    import openvino

    graph = openvino.Core().read_model(exported[0])
    in_int8 = 0
    for node in graph.get_ops():
        if node.get_type_name() not in ("MatMul", "Convolution", "GroupConvolution"):
            continue
        activation, weight = (node.input_value(i).get_node() for i in range(2))
        if node.get_type_name() == "GroupConvolution":
            assert "FakeQuantize" not in (activation.get_type_name(), weight.get_type_name())
            continue
        assert activation.get_type_name() == "FakeQuantize"
        assert activation.input_value(1).get_node().data.size == 1  # a scale for the tensor
        while weight.get_type_name() != "Constant":
            if weight.get_type_name() == "Multiply":
                scales = weight.input_value(1).get_node().data
            weight = weight.input_value(0).get_node()
        assert weight.get_element_type().to_string() == "i8"
        assert np.abs(weight.data.astype(int)).max() <= 64
        assert scales.size == max(scales.shape) > 1  # one for each output channel
        in_int8 += 1
    report = json.loads(exported[0].with_suffix(".int8.json").read_text())
    assert in_int8 == len(report["layers"]) - len(report["kept"])


def test_predictors_take_the_file(exported: tuple[Path, str], model: Model[Any, Any], tmp_path: Path) -> None:
    image(3).save(tmp_path / "image.png")
    expected = focalnet.Predictor(model)(tmp_path / "image.png")
    for predictor in (focalnet.Predictor(exported[0]), RuntimePredictor(exported[0])):
        actual = predictor(tmp_path / "image.png")
        assert actual.names[0] == expected.names[0]
        assert actual.scores == pytest.approx(expected.scores, abs=0.1)
    assert ExportedNetwork(exported[0]).predict(torch.randn(3, 3, 96, 72))[2].logits.shape == (3,)
    damaged = tmp_path / "m.xml"
    damaged.write_text(
        exported[0].read_text().replace("&quot;version&quot;: &quot;", "&quot;version&quot;: &quot;9", 1)
    )
    damaged.with_suffix(".bin").write_bytes(exported[0].with_suffix(".bin").read_bytes())
    with pytest.raises(CheckpointError, match=r"it or m\.bin was changed"):
        RuntimePredictor(damaged)


def test_layers_in_float32_stay_exact(model: Model[Any, Any], tmp_path: Path) -> None:
    source, out = model.export(tmp_path / "m.xml").path, tmp_path / "out.xml"
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 96)).astype(np.float32)
    expected = ExportedNetwork(source)(torch.from_numpy(images))
    layers = OpenVinoLayers(source)
    telemetry = sys.modules["nncf.telemetry.decorator"].telemetry if "nncf.telemetry.decorator" in sys.modules else None
    before = logging.getLoggerClass()
    graphs = layers.observe(lambda: [{"images": images}])
    assert logging.getLoggerClass() is before
    if telemetry is not None:
        assert not telemetry.send_event.called  # a stand-in, since NNCF sees the tests
    for graph in graphs.values():
        layers.write(out, graph, [], {})
        torch.testing.assert_close(ExportedNetwork(out)(torch.from_numpy(images)), expected, rtol=0, atol=0)
        layers.write(out, graph, ["head"], {})
        one = (ExportedNetwork(out)(torch.from_numpy(images)) - expected).abs().max()
        layers.write(out, graph, list(layers.layers), {})
        every = (ExportedNetwork(out)(torch.from_numpy(images)) - expected).abs().max()
        assert 0 < min(one, every)
        assert max(one, every) < expected.abs().max() / 4
    layers.write(source, graphs["minmax"], ["head"], {})  # over its own file
    assert float((ExportedNetwork(source)(torch.from_numpy(images)) - expected).abs().max()) == float(one)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_activations_that_are_not_finite(model: Model[Any, Any], tmp_path: Path, value: float) -> None:
    layers = OpenVinoLayers(model.export(tmp_path / "m.xml").path)
    images = np.full((1, 3, 64, 64), value, np.float32)
    with pytest.raises(ExportError, match="activations become NaN or infinite: int8 has no range for them"):
        layers.observe(lambda: [{"images": images}])


#: Two stages and three levels: most of the time of these tests is that of tracing.
ATSS = {
    "depths": (1, 1),
    "focal_levels": (1, 1),
    "focal_windows": (3, 3),
    "out_indices": (0, 1),
    "neck": FPNConfig(channels=16, levels=3, extra="conv"),
}


@pytest.mark.parametrize(
    ("method", "options", "one", "all_layers"),
    [("atss", ATSS, 0.15, 0.3), pytest.param("mask_rcnn", {}, 0.9, 1.0, marks=pytest.mark.slow)],
)
def test_detectors(
    model: Model[Any, Any],
    tmp_path: Path,
    method: str,
    options: dict[str, Any],
    one: float,
    all_layers: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Shares of the scores that objects may lose; the random heads of Mask R-CNN make much of small changes."""
    monkeypatch.setattr("focalnet.exporting.exporting.check_agreement", lambda *_: {})  # is tested elsewhere
    monkeypatch.setattr("focalnet.exporting.quantization.openvino_layers.RULES", {"minmax": "MINMAX"})
    source, out = network(method, **options).export(tmp_path / "m.xml").path, tmp_path / "out.xml"
    layers = OpenVinoLayers(source)
    noise = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    images, sizes = torch.nn.functional.interpolate(noise, (160, 160), mode="bicubic"), np.array([[160, 160]])
    expected = ExportedNetwork(source).predict(images)
    assert len(expected[0]) > 0
    graphs = layers.observe(lambda: [{"images": images.numpy(), "sizes": sizes, "original_sizes": sizes}])
    assert {"backbone.patch_embed.proj", "neck.fpn_convs.0.conv"} < set(layers.layers)
    for names, most in (([], 1e-6), (["backbone.patch_embed.proj"], one), (list(layers.layers), all_layers)):
        layers.write(out, graphs["minmax"], names, {})
        changed = change(expected, ExportedNetwork(out).predict(images))
        assert changed <= most
        assert bool(names) == (changed > 0)
