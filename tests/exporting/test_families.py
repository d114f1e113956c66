"""Every family as a file; ``export`` itself compares it with the network at several sizes and batch sizes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx
import pytest

from focalnet.inference.exported import ExportedNetwork
from tests.exporting.networks import FAMILIES, network

ALL = os.environ.get("FOCALNET_ALL_EXPORTS")


def test_a_program_of_a_segmenter(tmp_path: Path) -> None:
    exported = network("upernet").export(tmp_path / "model.pt2")
    assert exported.differences == {"labels (share of pixels)": pytest.approx(0, abs=1e-4)}
    assert ExportedNetwork(exported.path).config.output == "semantic"


def test_an_onnx_file_with_nms_and_roi_align(tmp_path: Path) -> None:
    exported = network("mask_rcnn").export(tmp_path / "model.onnx")
    assert exported.differences.keys() == {"boxes (px)", "scores", "masks (mean share of pixels)"}
    assert {"NonMaxSuppression", "RoiAlign"} <= {node.op_type for node in onnx.load(exported.path).graph.node}


@pytest.mark.skipif(not ALL, reason="takes half an hour; set FOCALNET_ALL_EXPORTS=1")
@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
@pytest.mark.parametrize(("method", "options"), FAMILIES)
def test_all_formats(method: str, options: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    assert network(method, **options).export(tmp_path / f"model{suffix}").differences
