"""A training run of one or two seconds: the digits, with a network of a few hundred parameters."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from focalnet.cli.train import fit

NETWORK = {"embed_dim": 8, "depths": [1, 1], "focal_levels": [1, 1], "focal_windows": [3, 3]}
TOY: dict[str, Any] = {
    "model.options": {**NETWORK, "drop_path_rate": 0.2},
    "model.optimizer.lr": 1e-2,
    "data.batch_size": 32,
    "trainer.limit_train_batches": 3,
    "trainer.limit_val_batches": 2,
    "trainer.max_epochs": 2,
    "trainer.accelerator": "cpu",
}
MIXED = {**TOY, "model.mix": {"mixup": 0.8, "cutmix": 0.8}, "data.augmentation.policy": "rand-m9-mstd0.5-inc1"}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    """Asserts that the weights of two runs are bit-identical."""
    a, b = weights_of(one), weights_of(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def run_in_child(recipe: str, folder: Path, options: dict[str, Any]) -> None:
    """Runs ``fit`` in its own process, so that loader workers are forked as in normal use."""
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    fit(recipe, output=folder, **options)
