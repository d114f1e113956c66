"""Runs of an earlier version: their weights give the same results, and they are resumed to the same end."""

# ruff: noqa: E402 (what follows imports the extras)
from __future__ import annotations

import logging
from pathlib import Path

import pytest

for package in ("lightning", "jsonargparse", "tensorboard"):
    pytest.importorskip(package, reason="runs need the extra train")
for package in ("pycocotools", "scipy"):
    pytest.importorskip(package, reason="runs of detection and segmentation need the extra dense")

import torch
from safetensors.torch import load_file

import focalnet
from tests.snapshots import run_folders
from tests.snapshots.compare import check, differences, plain, read
from tests.snapshots.tiny_data import RUNS

pytestmark = pytest.mark.filterwarnings(
    "ignore:The dirpath has changed",  # the run was made elsewhere
    "ignore:The loaded checkpoint was produced with Lightning",  # of a newer version than the installed one
)


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the run and its data in it."""
    run_folders.lay_out(run, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_its_weights_give_the_same_results(run: str, folder: Path) -> None:
    stored = run_folders.STORED / run
    (folder / "run/model.safetensors").write_bytes((stored / "model.safetensors").read_bytes())
    run_folders.predict("out")
    check(run_folders.prediction_differences(stored / "expected", folder / "out"))
    expected = run_folders.read_json(stored / "expected/feature_maps.json")
    check(differences(expected, run_folders.feature_maps(), "feature map", relative=1e-3, absolute=1e-4))


def test_it_is_resumed_to_the_same_end(run: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    start = run_folders.trained_weights(Path("run/last.ckpt"))
    before = Path("run/metrics.csv").read_text().splitlines()
    groups = run_folders.Groups()
    with caplog.at_level(logging.INFO, "focalnet"), groups.watched():
        focalnet.fit(run_folders.recipe(run), output="run")
    assert "going on from" in caplog.text
    after = Path("run/metrics.csv").read_text().splitlines()
    assert after[: len(before)] == before
    assert len(after) == len(before) + 1
    expected = load_file(run_folders.STORED / run / "model.safetensors")
    check(run_folders.weight_differences(start, expected, load_file("run/model.safetensors")))
    assert all(torch.isfinite(tensor).all() for tensor in expected.values())
    check(differences(read("runs")[run], plain(run_folders.facts(run, groups)), run))
