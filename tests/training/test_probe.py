"""The memory of a training step: estimated before the first epoch, tried on request, which changes no run."""

from __future__ import annotations

import platform
import resource
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from focalnet.cli.train import fit
from focalnet.data import DetectionData
from focalnet.data.augment import DetectionAugmentation
from focalnet.errors import ConfigError, DataError, TrainingError
from focalnet.samples import Batch
from focalnet.training import probe
from focalnet.training.callbacks import ReturnFreedMemory
from focalnet.training.failures import explained
from focalnet.training.run import Run
from focalnet.training.run_folder import RunFolder
from tests.data.coco import write_coco
from tests.training.toy import MIXED, TOY, assert_same_weights

DIGITS = "classification/digits"


class Two(nn.Module):
    """Keeps 100 numbers an image for the first layer, and the 50 that ReLU gives for itself and the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(100, 50), nn.Linear(50, 1)

    def loss(self, batch: Batch[int]) -> dict[str, torch.Tensor]:
        return {"loss": self.second(self.first(batch.images).relu()).sum()}


@pytest.mark.parametrize("images", [1, 8])
def test_what_is_kept_for_the_backward_pass_is_counted(images):
    batch = Batch(torch.ones(images, 100), [(1, 1)] * images, torch.zeros(images), [])
    assert probe.saved_bytes(Two(), batch) == 4 * images * (100 + 50)


def test_a_step_is_tried_and_the_run_stays_the_same(tmp_path, caplog):
    whole = fit(DIGITS, output=tmp_path / "whole", **MIXED)
    with caplog.at_level("INFO", "focalnet"):
        tried = fit(DIGITS, output=tmp_path / "tried", **MIXED, **{"trainer.probe": True})
    assert "a training step of 32 images of 8 x 8 pixels fits" in caplog.text
    assert "a training step needs at least" in caplog.text
    assert_same_weights(whole, tried)


def test_too_large_a_step_is_warned_of_and_not_tried(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(probe, "free_bytes", lambda device: 1000)
    once = {**TOY, "trainer.max_epochs": 1}
    fit(DIGITS, output=tmp_path / "run", **once)
    assert "1000" not in caplog.text
    assert "of memory, and 0 MiB are free: if the system ends the run, lower --data.batch_size" in caplog.text
    with pytest.raises(TrainingError, match=r"0 MiB are free: lower --data.batch_size.*a batch of about 1; nothing"):
        fit(DIGITS, output=tmp_path / "tried", **once, **{"trainer.probe": True})
    assert not (tmp_path / "tried").exists()
    with pytest.raises(ConfigError, match="compile"):
        fit(DIGITS, output=tmp_path / "tried", **once, **{"trainer.probe": True, "model.compile": True})


def test_an_automatic_batch_fills_the_memory_and_is_kept(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(probe, "saved_bytes", lambda network, batch: 1000 * len(batch.images))
    monkeypatch.setattr(probe, "fixed_bytes", lambda task: 10_000)
    monkeypatch.setattr(probe, "free_bytes", lambda device: 100_000)
    auto = {**TOY, "data.batch_size": "auto", "trainer.max_epochs": 1}
    with caplog.at_level("INFO", "focalnet"):
        run = fit(DIGITS, output=tmp_path / "run", **auto)
    assert "data.batch_size is 32" in caplog.text  # 50 fit into 60 % of what is free
    assert RunFolder(run).stored_batch_size() == 32
    monkeypatch.setattr(probe, "free_bytes", lambda device: 15_000)
    assert isinstance(fit(DIGITS, output=run, **auto), Run)  # finished, with the size that it had
    with pytest.raises(ConfigError, match="auto: one image needs"):
        fit(DIGITS, output=tmp_path / "other", **auto)


def test_the_largest_batch_has_the_largest_size_and_most_objects(tmp_path):
    augmentation = DetectionAugmentation(short_sides=(40, 60), crop_prob=0.0)
    options = {"batch_size": 2, "image_size": 60, "max_size": 96, "num_workers": 0}
    data = DetectionData(write_coco(tmp_path, images=5), augmentation=augmentation, **options)
    data.setup("fit")
    images = data.samples["train"].images
    first = max(images, key=lambda image: len(image.annotations))
    batch = data.largest_batch(1)
    assert batch.infos[0].image_id == first.image_id
    size = (96, 64) if first.height > first.width else (64, 96)
    assert batch.images.shape == (1, 3, *size)
    assert batch.targets[0].masks.shape[1:] == size
    assert len(data.largest_batch(9)) == 9


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate")])
def test_memory_that_the_system_refuses_is_one_line(error):
    with pytest.raises(TrainingError, match=r"out of memory: lower --data.batch_size.*--data.num_workers"), explained():
        raise error


def test_a_stream_is_not_resumed_in_another_order():
    from focalnet.data.loader import Loader

    loader = object.__new__(Loader)
    loader.__dict__ |= {"num_workers": 2, "_given": 3, "_order": type("Stream", (), {"epoch": 1})()}
    state = loader.state_dict()
    loader.load_state_dict(state)
    loader.__dict__["num_workers"] = 3
    with pytest.raises(DataError, match="2 workers in all have read the shards, 3 would"):
        loader.load_state_dict(state)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no malloc_trim")
def test_freed_memory_is_given_back():
    """Small tensors that stay between large ones that go leave gaps, as images of many sizes do."""
    stay, go = [], []
    for _ in range(2000):
        go.append(torch.ones(25_000))
        stay.append(torch.ones(10))
    go.clear()
    before = resident_bytes()
    ReturnFreedMemory().on_train_batch_end(SimpleNamespace(is_last_batch=True), None, {}, None, 0)
    assert before - resident_bytes() > 100e6
