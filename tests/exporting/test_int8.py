"""Int8 files: what is quantized, what is kept in float32, what is measured before writing, and bad input."""

from __future__ import annotations

import copy
import itertools
import json
import logging
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import focalnet
from focalnet import weights
from focalnet.card import ModelCard, Preprocessing
from focalnet.cli.main import main
from focalnet.errors import ConfigError, DataError, ExportError, FocalNetError, MissingDependency
from focalnet.exporting.quantization import quantizing
from focalnet.exporting.quantization.changes import change
from focalnet.exporting.quantization.data import LabeledData
from focalnet.exporting.quantization.onnx_layers import Layer, OnnxLayers
from focalnet.inference.exported import ExportedNetwork
from focalnet.kernels import int8 as kernels_int8
from focalnet.kernels import processor
from focalnet.metrics.base import Metric
from focalnet.models import Model
from focalnet.results import Classification, Detections, MultiLabel, PanopticMap, Segment, SemanticMap
from focalnet.runtime import Predictor as RuntimePredictor
from focalnet.runtime import read_header
from tests.exporting.networks import network

NAMES = ("class a", "class b", "class c")
SPLITS = {"train": 24, "val": 12}


@pytest.fixture(scope="module")
def model() -> Model[Any, Any]:
    """A classifier that sees its three classes about equally often in the images of ``data``."""
    model = network("classifier", depths=(1, 1), focal_windows=(3, 3), focal_levels=(1, 1))
    preprocessing = Preprocessing(image_size=64, crop_pct=1.0)
    model.card = ModelCard(name="tiny.test", class_names=NAMES, preprocessing=preprocessing)
    logits = torch.stack([one.logits for one in focalnet.Predictor(model)([image(i) for i in range(24)])])
    with torch.no_grad():
        model.head.bias -= logits.mean(0)
    return model


def image(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(pixels).resize((64, 64))


@pytest.fixture(scope="module")
def data(model: Model[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders in which every image is of the class that the model predicts."""
    root = tmp_path_factory.mktemp("data")
    predictor = focalnet.Predictor(model)
    seeds = itertools.count()
    for split, count in SPLITS.items():
        wanted = dict.fromkeys(NAMES, count // len(NAMES))
        while any(wanted.values()):
            pixels = image(next(seeds))
            name = predictor(pixels).names[0]
            if wanted[name]:
                wanted[name] -= 1
                path = root / split / name / f"{wanted[name]}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels.save(path)
    return root


@pytest.fixture(scope="module")
def exported(model: Model[Any, Any], data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An int8 file that the command line wrote, and what it said."""
    folder = tmp_path_factory.mktemp("int8")
    weights.save(model, folder / "model.safetensors")
    command = ["export", str(folder / "model.safetensors"), "--out", str(folder / "m.onnx"), "--int8"]
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("focalnet.cli.export.say", lambda *said: lines.extend(map(str, said)))
        patch.setattr("focalnet.cli.export.show_progress", lambda: None)
        assert main([*command, "--data", str(data), "--calibration", "20"]) == 0
    return folder / "m.onnx", "\n".join(lines)


def test_the_file_and_its_report(exported: tuple[Path, str], data: Path) -> None:
    path, said = exported
    report = json.loads(path.with_suffix(".int8.json").read_text())
    assert report["calibration_images"] == 20
    assert report["images"] == SPLITS["val"]
    assert report["float32"] == {"top1": 100.0}
    assert report["float32"]["top1"] - report["int8"]["top1"] <= 0.3
    assert report["bytes"]["int8"] == path.stat().st_size
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
    assert f"measured on {SPLITS['val']} images (split val)" in said
    assert report["layers"][0]["name"] in said


def test_operators_of_the_file(exported: tuple[Path, str]) -> None:
    model = onnx.load(exported[0])
    types = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {output: node for node in model.graph.node for output in node.output}
    scales = []
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv"):
            continue
        weight = nodes.get(node.input[1])
        grouped = any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)
        assert (weight is None) == grouped
        if weight is not None:
            assert weight.op_type == "DequantizeLinear"
            assert types[weight.input[0]].data_type == onnx.TensorProto.INT8
            scales.append(types[weight.input[1]].dims)
    assert scales
    assert all(len(dims) == 1 and dims[0] > 1 for dims in scales)  # one for each output channel
    assert not any(node.op_type == "Identity" for node in model.graph.node)


def test_predictors_take_int8_files(exported: tuple[Path, str], model: Model[Any, Any], tmp_path: Path) -> None:
    image(3).save(tmp_path / "image.png")
    expected = focalnet.Predictor(model)(tmp_path / "image.png")
    for predictor in (focalnet.Predictor(exported[0]), RuntimePredictor(exported[0])):
        actual = predictor(tmp_path / "image.png")
        assert actual.names[0] == expected.names[0]
        assert actual.scores == pytest.approx(expected.scores, abs=0.1)
    assert ExportedNetwork(exported[0]).predict(torch.randn(3, 3, 96, 72))[2].logits.shape == (
        3,
    )  # shapes stay dynamic


def test_an_input_that_others_read_too_stays_exact(tmp_path: Path) -> None:
    """A residual connection around an int8 product adds the input itself, not what the product takes."""
    from onnx import helper as h

    weight = onnx.numpy_helper.from_array(np.zeros((4, 4), np.float32), "w")
    shape = [1, 4]
    product = h.make_node("MatMul", ["a", "w"], ["b"], name="product")
    product.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'model', 'model.layer', 'linear']")
    total = h.make_node("Add", ["a", "b"], ["c"], name="sum")
    first = h.make_node("Neg", ["x"], ["a"], name="first")
    graph = h.make_graph(
        [first, product, total],
        "residual",
        [h.make_tensor_value_info("x", 1, shape)],
        [h.make_tensor_value_info("c", 1, shape)],
        [weight],
    )
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=10), tmp_path / "f.onnx")
    layers = OnnxLayers(tmp_path / "f.onnx")
    assert list(layers.layers) == ["layer"]
    values = np.array([[0.1234567, 3.0, -5.0, 1.0]], np.float32)
    ranges = layers.observe(lambda: [{"x": values}])
    assert ranges["minmax"]["a"] == (-3.0, 5.0)
    layers.write(tmp_path / "q.onnx", ranges["minmax"], ["layer"], {"focalnet": "{}"})
    written = onnx.load(tmp_path / "q.onnx")
    assert "QuantizeLinear" in {node.op_type for node in written.graph.node}
    assert [entry.key for entry in written.metadata_props] == ["focalnet", "focalnet_sha256"]
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "q.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": values})[0], -values)
    with pytest.raises(ExportError, match="become NaN"):
        layers.observe(lambda: [{"x": values * np.nan}])


def test_convolutions_that_share_a_weight_stay_in_float32(tmp_path: Path) -> None:
    """Such as those of a head on several feature maps, with which ONNX Runtime could not open the file."""
    from onnx import helper as h

    rng = np.random.default_rng(0)
    weights = [onnx.numpy_helper.from_array(rng.normal(size=(4, 4, 1, 1)).astype(np.float32), f"w{i}") for i in "ab"]
    bias = onnx.numpy_helper.from_array(np.ones(4, np.float32), "bias")
    nodes = []
    for number, (given, weight) in enumerate((("x", "wa"), ("y0", "wa"), ("y1", "wb"))):
        nodes.append(h.make_node("Conv", [given, weight, "bias"], [f"y{number}"], name=f"conv{number}"))
        scopes = f"['', 'model', 'model.{weight}', 'conv']"
        nodes[-1].metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    values = [h.make_tensor_value_info(name, 1, [1, 4, 2, 2]) for name in ("x", "y2")]
    graph = h.make_graph(nodes, "shared", values[:1], values[1:], [*weights, bias])
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=10), tmp_path / "f.onnx")
    layers = OnnxLayers(tmp_path / "f.onnx")
    assert list(layers.layers) == ["wb"]
    ranges = layers.observe(lambda: [{"x": rng.normal(size=(1, 4, 2, 2)).astype(np.float32)}])
    layers.write(tmp_path / "q.onnx", ranges["minmax"], ["wb"], {})
    weight_types = {tensor.name: tensor.data_type for tensor in onnx.load(tmp_path / "q.onnx").graph.initializer}
    assert weight_types["wa"] == onnx.TensorProto.FLOAT


class Toy:
    """Layers, files and data of a network whose accuracy depends on the layers in int8 in a known way."""

    def __init__(self, lost: dict[str, float]) -> None:
        self.lost = lost
        self.layers = {name: Layer(name, "MatMul", 1) for name in lost}
        self.root, self.split, self.images, self.calibration = Path("data"), "val", 1000, 10
        self.config = SimpleNamespace(output="classification", num_classes=2)

    def observe(self, batches: Any) -> dict[str, float]:
        return {"minmax": 2.0, "percentile": 1.0}

    def write(self, path: Path, ranges: float, names: Any, metadata: Any) -> None:
        path.write_text(json.dumps({"names": list(names), "factor": ranges}))

    def inputs(self, count: int | None = None) -> list[dict[str, Any]]:
        sizes = np.array([[8, 8]])
        return [{"images": np.zeros((1, 3, 8, 8), np.float32), "sizes": sizes, "original_sizes": sizes}]

    def measure(self, network: Any) -> dict[str, Metric]:
        return {"top1": Metric("top1", "top-1", 90 - network.lost)}

    def chance(self) -> float:
        return 50.0

    def open(self, path: Path, format: str) -> Any:
        file = json.loads(path.read_text())
        lost = file["factor"] * sum(self.lost[name] for name in file["names"])
        result = Classification((0,), (1.0,), ("a",), logits=torch.tensor([1.0 + lost, -1.0]))
        return SimpleNamespace(lost=lost, predict=lambda *_: [result])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def run(lost: dict[str, float], max_loss: float) -> Any:
        toy = Toy(lost)
        toy.write(tmp_path / "source", 0.0, [], {})
        monkeypatch.setattr(quantizing, "ExportedNetwork", toy.open)
        quantization, write = quantizing.quantize(toy, tmp_path / "source", "onnx", toy, max_loss, Path("m.onnx"))  # type: ignore[arg-type]
        write(tmp_path / "out", {})
        return quantization, json.loads((tmp_path / "out").read_text())

    return run


def test_layers_that_cost_too_much_stay_in_float32(run: Callable[..., Any]) -> None:
    lost = {"a": 0.1, "b": 1.0, "c": 0.05, "d": 0.6, "e": 0.05}
    quantization, written = run(lost, 0.3)
    assert quantization.ranges == "percentile"  # it changes the results less
    assert [cost.layer.name for cost in quantization.layers][:3] == ["b", "d", "a"]
    assert quantization.kept == ("b", "d")
    assert written == {"names": ["a", "c", "e"], "factor": 1.0}
    assert [number for number, _ in quantization.tries] == [0, 1, 2]
    assert quantization.int8["top1"].value == pytest.approx(89.8)
    said = list(quantization.lines())
    assert "in int8: 3 of 5 layers; 2 cost too much" in said
    assert sum("kept in float32" in line for line in said) == 2
    assert run(lost, 2.0)[0].kept == ()


def test_a_file_that_loses_too_much_is_refused(run: Callable[..., Any]) -> None:
    with pytest.raises(ExportError) as error:
        run(dict.fromkeys("abcde", 1.0), 0.3)
    assert str(error.value) == (
        "m.onnx: not written: int8 loses 1.00 percentage points with 4 of 5 layers in float32 (top-1 90.00 % in "
        "float32, 89.00 % in int8; 1000 images), more than 0.3; --max-loss 1.00 accepts it"
    )


def test_a_network_that_guesses_is_refused(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toy, "measure", lambda *_: {"top1": Metric("top1", "top-1", 50.0)})
    with pytest.raises(ExportError, match=r"top-1 50\.00 % on 1000 images of data, no more than guessing"):
        run({"a": 1.0}, 0.3)


def test_changes_of_results() -> None:
    first = Classification((0,), (1.0,), ("a",), logits=torch.tensor([3.0, -3.0]))
    second = Classification((0,), (1.0,), ("a",), logits=torch.tensor([3.3, -3.0]))
    assert change([first], [first]) == 0
    assert change([first], [second]) == pytest.approx(0.3 / 18**0.5)
    several, others = (MultiLabel((), (), (), logits=torch.tensor([[value]])) for value in (2.0, 1.0))
    assert change([several], [others]) == pytest.approx(0.5)

    def detections(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Detections:
        return Detections(
            torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), torch.tensor(labels), ("a", "b"), None, (9, 9)
        )

    two = detections([[0, 0, 4, 4], [0, 0, 8, 8]], [0.8, 0.2], [0, 1])
    assert change([two], [two]) == pytest.approx(0)
    assert change([two], [detections([[0, 0, 4, 4]], [0.8], [0])]) == pytest.approx(0.2)
    assert change([two], [detections([[0, 0, 4, 2], [0, 0, 8, 8]], [0.8, 0.2], [0, 1])]) == pytest.approx(0.4)
    assert change([two], [detections([[0, 0, 4, 4], [0, 0, 8, 8]], [0.4, 0.2], [0, 1])]) == pytest.approx(0.32)
    assert change([two], [detections([[0, 0, 4, 4], [0, 0, 8, 8]], [0.8, 0.2], [1, 0])]) > 0.5
    assert change([two], [detections([], [], [])]) == pytest.approx(1)
    without_area = detections([[3, 3, 3, 3], [0, 0, 8, 8]], [0.8, 0.2], [0, 1])
    assert change([without_area], [without_area]) == pytest.approx(0)
    assert change([detections([], [], [])], [two]) == 0
    pixels = torch.zeros(2, 4, dtype=torch.int64)
    changed = pixels.clone()
    changed[0, 0] = 1
    assert change([SemanticMap(pixels, ("a", "b"))], [SemanticMap(changed, ("a", "b"))]) == pytest.approx(1 / 8)
    segments = (Segment(1, 0, True, 0.9, 4), Segment(2, 0, True, 0.9, 4))
    both = PanopticMap(torch.tensor([[1, 2]], dtype=torch.int32), segments, ("a", "b"))
    one = PanopticMap(torch.tensor([[1, 0]], dtype=torch.int32), segments[:1], ("a", "b"))
    assert change([both], [both]) == 0
    assert change([both], [one]) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"int8": True}, "--data must be a folder of class folders"),
        ({"data": "x"}, "are options of int8"),
        ({"split": "test"}, "are options of int8"),
        ({"int8": True, "data": "x", "format": "torch"}, "choose the format onnx"),
        ({"int8": True, "data": "missing"}, "missing: no such file or folder; --data must be"),
        ({"int8": True, "split": "train"}, 'split="train" must be "val" or "test"'),
        ({"int8": True, "split": "test"}, "there is no test split"),
        ({"int8": True, "calibration": 0}, "calibration=0 must be at least 1"),
        ({"int8": True, "calibration": 300}, "24 training images .* calibration=300 asks for more"),
        ({"int8": True, "max_loss": -1.0}, "max_loss=-1.0 must be between 0 and 100"),
    ],
)
def test_options_that_cannot_work(
    options: dict[str, Any], says: str, model: Model[Any, Any], data: Path, tmp_path: Path
) -> None:
    if len(options) > 1 and "data" not in options and "int8" in options:
        options = {"data": data, **options}
    suffix = ".pt2" if options.get("format") == "torch" else ".onnx"
    with pytest.raises((ConfigError, DataError), match=says):
        model.export(tmp_path / f"m{suffix}", **options)
    assert list(tmp_path.iterdir()) == []


def test_data_that_do_not_fit(model: Model[Any, Any], data: Path, tmp_path: Path) -> None:
    def opened(root: Path, **options: Any) -> LabeledData:
        return LabeledData(model, model.card, root, **options)

    shutil.copytree(data, tmp_path / "renamed")
    for split in SPLITS:
        (tmp_path / "renamed" / split / "class c").rename(tmp_path / "renamed" / split / "class d")
    with pytest.raises(DataError, match='class 2 is "class d" in the data and "class c" in the model'):
        opened(tmp_path / "renamed")
    shutil.copytree(data, tmp_path / "numbered")
    for split in SPLITS:
        for i, name in enumerate(NAMES):
            (tmp_path / "numbered" / split / name).rename(tmp_path / "numbered" / split / str(i))
    assert opened(tmp_path / "numbered").images == SPLITS["val"]
    shutil.copytree(data, tmp_path / "fewer")
    for split in SPLITS:
        shutil.rmtree(tmp_path / "fewer" / split / "class c")
    with pytest.raises(DataError, match="has 2 classes, the model 3"):
        opened(tmp_path / "fewer")
    (data / "val").rename(data / "test")
    try:
        with pytest.raises(DataError, match="--split test measures with the test images"):
            opened(data)
        tested = opened(data, split="test")
    finally:
        (data / "test").rename(data / "val")
    assert (tested.images, tested.calibration) == (SPLITS["val"], SPLITS["train"])


def test_calibration_images_never_measure(model: Model[Any, Any], data: Path, tmp_path: Path) -> None:
    labeled = LabeledData(model, model.card, data, count=5)
    shapes = [batch["images"].shape for batch in labeled.inputs()]
    assert shapes == [(5, 3, 64, 64)]
    again = LabeledData(model, model.card, data, count=5)
    np.testing.assert_array_equal(next(labeled.inputs())["images"], next(again.inputs())["images"])
    shutil.copytree(data / "train", tmp_path / "one")
    whole = LabeledData(model, model.card, tmp_path / "one")  # without splits, some are held out
    assert whole.calibration + whole.images == SPLITS["train"]


def test_processors_without_int8(
    model: Model[Any, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    reports = {"avx512_vnni": True}, {"avx512_vnni": False, "avx_vnni": True}, {"avx_vnni": False}, {}, {"neon": True}
    for report, computes in zip(reports, (True, True, False, True, True), strict=True):
        monkeypatch.setattr(processor, "capabilities", lambda report=report: report)
        assert processor.computes_int8() == computes
    monkeypatch.setattr(processor, "capabilities", lambda: {"avx_vnni": False})
    with caplog.at_level(logging.WARNING, "focalnet"), pytest.raises(FocalNetError):
        model.export(tmp_path / "m.onnx", int8=True, data=tmp_path / "missing")
    assert "will be slower here than float32" in caplog.text


def test_a_missing_package(model: Model[Any, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning", None)
    with pytest.raises(MissingDependency, match=r"lightning.*focalnet\[train\]"):
        model.export(tmp_path / "m.onnx", int8=True, data=data)


@pytest.mark.skipif(kernels_int8.why_not() is not None, reason=str(kernels_int8.why_not()))
def test_int8_in_pytorch(model: Model[Any, Any], data: Path, tmp_path: Path) -> None:
    ours = copy.deepcopy(model)
    done = focalnet.optimize(ours, int8=focalnet.int8_from_data(ours, data, calibration=20, max_error=9.0))
    assert done.quantization is not None
    before, after = done.quantization.metrics["top-1"]
    assert before == 1.0
    assert after >= 1 - 0.003
    assert done.quantization.agreement is not None
    done.undo()
    with pytest.raises(ConfigError, match="max_loss=-1"):
        focalnet.int8_from_data(ours, data, max_loss=-1)
    with pytest.raises(ConfigError, match="not a Linear"):
        focalnet.int8_from_data(torch.nn.Linear(1, 1), data)  # type: ignore[arg-type]
    other = copy.deepcopy(model)
    assert other.card is not None
    other.card = replace(other.card, class_names=tuple(reversed(other.card.class_names)))
    with pytest.raises(ConfigError, match="for another network"):
        focalnet.optimize(other, int8=focalnet.int8_from_data(ours, data, calibration=20))
    guessing = copy.deepcopy(model)
    with torch.no_grad():
        guessing.head.weight.zero_()
    with pytest.raises(DataError, match="no more than guessing"):
        focalnet.optimize(guessing, int8=focalnet.int8_from_data(guessing, data, calibration=20))


def test_refusals_of_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for options, says in (
        (["--int8"], "error: int8 needs labeled data"),
        (["--int8", "--format", "torch", "--data", "x"], "choose the format onnx"),
        (["--max-loss", "1"], "are options of int8"),
    ):
        suffix = ".pt2" if "torch" in options else ".onnx"
        assert main(["export", "focalnet_nano.cifar10", "--out", str(tmp_path / f"m{suffix}"), *options]) == 2
        said = capsys.readouterr().err
        assert says in said
        assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_report_of_another_file_stays(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """``m.onnx`` and ``m.xml`` have reports of the same name."""
    (tmp_path / "m.int8.json").write_text("{}")
    command = ["export", "focalnet_nano.cifar10", "--out", str(tmp_path / "m.onnx"), "--int8", "--data", str(tmp_path)]
    assert main(command) == 2
    assert "m.int8.json: already exists; overwrite it with --force" in capsys.readouterr().err
    assert main([*command, "--force"]) == 2  # of the data
    assert "m.int8.json" not in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["m.int8.json"]


def test_several_labels_are_measured(model: Model[Any, Any], tmp_path: Path) -> None:
    several = network("classifier", depths=(1, 1), focal_windows=(3, 3), focal_levels=(1, 1), multi_label=True)
    several.card = model.card
    for split, count in SPLITS.items():
        (tmp_path / split).mkdir()
        rows = [f"{i}.png,{i % 2},1,{i % 3 == 0:d}" for i in range(count)]
        (tmp_path / split / "labels.csv").write_text("\n".join([",".join(["image", *NAMES]), *rows]) + "\n")
        for i in range(count):
            image(i).save(tmp_path / split / f"{i}.png")
    labeled = LabeledData(several, several.card, tmp_path)
    assert (labeled.calibration, labeled.images) == (SPLITS["train"], SPLITS["val"])
    with torch.no_grad():
        (name,) = labeled.measure(several)
    assert name == "map"
