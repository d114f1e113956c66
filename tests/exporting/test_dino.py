"""DINO as one ONNX file for images of any number and size."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor

from focalnet.errors import InputError
from focalnet.exporting.tracing import trace
from focalnet.inference.exported import ExportedNetwork
from focalnet.models import Model
from focalnet.results import Detections
from focalnet.runtime import read_header
from tests.exporting.networks import network

#: Height and width, batch size; none was traced or compared by ``export``.
SHAPES = [((67, 93), 1), ((128, 192), 4), ((101, 217), 4), ((288, 96), 1)]


def images_and_sizes(size: tuple[int, int], batch: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """Random images of different sizes, padded with zeros."""
    images = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(batch))
    sizes = [(size[0] - 9 * i, size[1] - 16 * i) for i in range(batch)]
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
    return images, sizes


def assert_equal(ours: list[Detections], theirs: list[Detections], pixels: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.labels.tolist() == b.labels.tolist()
        torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=pixels)
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-4)


def assert_agrees(model: Model, exported: Model) -> None:
    for size, batch in SHAPES:
        images, sizes = images_and_sizes(size, batch)
        originals = [(800, 800 + 10 * i) for i in range(batch)]
        with torch.no_grad():
            expected = model.predict(images, sizes, originals)
        assert_equal(expected, exported.predict(images, sizes, originals), 1e-3)


def test_onnx_at_other_sizes(dino: tuple[Model, Path]) -> None:
    model, path = dino
    graph = onnx.load(path).graph
    assert {node.domain for node in graph.node} == {""}
    assert "GridSample" in {node.op_type for node in graph.node}
    assert_agrees(model, ExportedNetwork(path))


def test_program_without_grid_sample() -> None:
    model = network("dino", score_threshold=0.0, decoder_layers=1)
    traced = trace(model, grid_sample=False)
    assert not [node for node in traced.program.graph.nodes if "grid_sample" in str(node.target)]
    module = traced.program.module()
    for size, batch in SHAPES:
        images, sizes = images_and_sizes(size, batch)
        inputs = images, torch.tensor(sizes), torch.tensor(sizes) * 4
        with torch.no_grad():
            expected = model.predict_tensors(*inputs)
            actual = module(*inputs)
        for one, other in zip(actual, expected.values(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-3)


def test_eager_tensors_are_the_results() -> None:
    model = network("dino", score_threshold=0.05, num_queries=9)
    images, sizes = images_and_sizes((101, 217), 4)
    originals = [(300, 650)] * 4
    with torch.no_grad():
        tensors = model.predict_tensors(images, torch.tensor(sizes), torch.tensor(originals))
        results = model.predict(images, sizes, originals)
    assert any(len(result) < len(labels) for result, labels in zip(results, tensors["labels"], strict=True))
    for i, result in enumerate(results):
        count = len(result)
        assert torch.equal(tensors["boxes"][i, :count], result.boxes)
        assert torch.equal(tensors["scores"][i, :count], result.scores)
        assert torch.equal(tensors["labels"][i, :count], result.labels)
        assert (tensors["labels"][i, count:] == -1).all()
        assert (tensors["scores"][i, count:] == 0).all()


def test_metadata(dino: tuple[Model, Path]) -> None:
    model, path = dino
    header = read_header(path)
    assert header.card == model.card
    assert (header.output, header.family, header.num_classes) == ("detection", "dino", 3)
    assert header.inputs == ("images", "sizes", "original_sizes")
    assert header.outputs == ("boxes", "scores", "labels")
    assert header.thresholds["max_per_image"] == model.config.max_per_image
    with pytest.raises(InputError, match="64 x 96 pixels are smaller than the 65 that the exported network takes"):
        ExportedNetwork(path)(torch.zeros(1, 3, 64, 96))
