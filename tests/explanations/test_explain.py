"""Explanations: values and places of their maps, and the files they are saved to."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from focalnet import explain
from focalnet.card import Preprocessing
from focalnet.data.preprocess import eval_transform
from focalnet.errors import ConfigError, FocalNetError, ImageError
from focalnet.explanations import record
from focalnet.explanations.preparing import input_region
from tests.inference.small import CARD, backbone, classifier, noise, ramp


def test_maps_are_the_recorded_ones() -> None:
    model, picture = classifier(), noise()
    with torch.no_grad(), record(model) as records:
        model(eval_transform(CARD.preprocessing)(picture)[None])
    explanation = explain(model, picture)
    assert [block.name for block in explanation.blocks] == list(records)
    for block in explanation.blocks:
        np.testing.assert_allclose(block.gates, records[block.name].gates[0], rtol=1e-5, atol=1e-6)
        norm = (records[block.name].modulator[0] ** 2).sum(0).sqrt()
        np.testing.assert_allclose(block.modulator, norm, rtol=1e-5)
    assert list(explanation.blocks[0].named()) == ["level 1", "level 2", "global", "modulator"]


def test_half_precision_is_explained() -> None:
    explanation = explain(classifier().bfloat16(), noise())
    exact = explain(classifier(), noise())
    for rough, fine in zip(explanation.blocks, exact.blocks, strict=True):
        np.testing.assert_allclose(rough.gates, fine.gates, atol=0.05)


def test_it_says_what_the_classifier_says() -> None:
    prediction = explain(classifier(), noise()).prediction
    assert prediction is not None
    assert set(prediction.names) == set(CARD.class_names)
    assert explain(backbone(), noise()).prediction is None


def test_the_model_is_left_as_it_was() -> None:
    model = classifier(drop_rate=0.5).train()
    explain(model, noise())
    assert model.training
    assert model.layers[0].training


@settings(max_examples=60)
@given(
    width=st.integers(16, 300),
    height=st.integers(16, 300),
    side=st.integers(12, 64),
    crop_pct=st.sampled_from([1.0, 0.95, 0.9, 0.875, 0.8]),
)
def test_the_input_region_is_what_the_transform_cuts_out(width: int, height: int, side: int, crop_pct: float) -> None:
    plain = Preprocessing(image_size=side, crop_pct=crop_pct, interpolation="bilinear", mean=(0,) * 3, std=(1,) * 3)
    pixels = eval_transform(plain)(ramp(width, height))
    left, top, right, bottom = input_region((width, height), plain)
    # The ramps are straight lines: their mean tells the centre of what was cut out, their slope its size
    # (away from the rim, where interpolation has nothing to lean on).
    a, b = side // 4, side - 1 - side // 4
    columns, rows = pixels[0].mean(0), pixels[1].mean(1)
    for line, edges, length in ((columns, (left, right), width), (rows, (top, bottom), height)):
        assert line.mean().item() * length == pytest.approx(sum(edges) / 2, abs=0.02 * length + 0.3)
        slope = (line[b] - line[a]).item() / (b - a) * side
        assert slope * length == pytest.approx(edges[1] - edges[0], abs=0.04 * length + 0.3)


def test_maps_of_odd_sizes_cover_what_their_cells_saw() -> None:
    model = classifier()
    model.card = dataclasses.replace(CARD, preprocessing=Preprocessing(image_size=19, crop_pct=1.0))
    first, second = explain(model, noise(19, 19)).blocks
    assert first.gates.shape == (3, 9, 9)
    assert first.region == (0, 0, 18, 18)  # 9 cells of stride 2: the last column of pixels is dropped
    assert second.gates.shape == (2, 4, 4)
    assert second.region == (0, 0, 16, 16)


def test_saved_files_are_named_by_block_and_map(tmp_path: Path) -> None:
    files = explain(classifier(), noise(), ["layers.1.blocks.0"]).save(tmp_path / "new" / "folder")
    assert [file.name for file in files] == [
        "sheet.png",
        "layers.1.blocks.0-level-1.png",
        "layers.1.blocks.0-global.png",
        "layers.1.blocks.0-modulator.png",
    ]
    assert sorted(file.name for file in (tmp_path / "new" / "folder").iterdir()) == sorted(f.name for f in files)
    for file in files:
        with Image.open(file) as image:
            assert image.mode == "RGB"
            assert min(image.size) > 100


def test_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FocalNetError, match="cannot write"):
        explain(classifier(), noise()).save(tmp_path / "file")


def test_bad_input_is_refused(tmp_path: Path) -> None:
    bare = classifier()
    bare.card = None
    with pytest.raises(ConfigError, match="card"):
        explain(bare, noise())
    with pytest.raises(ConfigError, match="Linear"):
        explain(torch.nn.Linear(1, 1), noise())
    with pytest.raises(ConfigError, match="the blocks are"):
        explain(classifier(), noise(), ["layers.0"])
    with pytest.raises(ImageError, match="absent"):
        explain(classifier(), tmp_path / "absent.jpg")
