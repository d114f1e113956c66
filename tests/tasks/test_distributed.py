"""Several processes compute what one does."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from focalnet.cli.train import fit
from focalnet.errors import ConfigError
from tests.tasks.toy import TOY, weights_of

DIGITS = "classification/digits"
#: Drop path and mixing are drawn in each process for its own images; everything else is the same.
OPTIONS = {**TOY, "model.options": {**TOY["model.options"], "drop_path_rate": 0.0}, "model.ema_decay": None}

#: Lightning shards on GPUs only, as far as it checks; what it then does works on CPUs too.
SHARD_ON_CPU = """
import sys, torch
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector
from torch.distributed.fsdp import FullyShardedDataParallel
from focalnet.cli.main import main

_AcceleratorConnector._check_strategy_and_fallback = lambda self: None
on_gpu = FullyShardedDataParallel.__init__
FullyShardedDataParallel.__init__ = lambda self, *args, device_id, **options: on_gpu(
    self, *args, device_id=torch.device("cpu"), **options
)
sys.exit(main(sys.argv[1:]))
"""


def history(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def fit_in_two(folder: Path, program: list[str], options: dict[str, Any]) -> str:
    """Runs ``focalnet fit`` under torchrun and returns what it showed."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    given = [f"--{name}={'null' if value is None else value}" for name, value in options.items()]
    command = [*torchrun, *program, "fit", DIGITS, "--output", str(folder), "--trainer.devices=2", *given]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr
    return run.stderr


def assert_the_same_run(one: Path, other: Path) -> None:
    """But for the order in which numbers were added."""
    expected, found = weights_of(one), weights_of(other)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=name)
    for row, its in zip(history(one), history(other), strict=True):
        for name in ("train_loss", "val_loss", "top1", "learning_rate"):
            assert float(row[name]) == pytest.approx(float(its[name]), rel=1e-5), name


@pytest.mark.slow
def test_two_processes_reach_the_loss_of_one(tmp_path):
    averaged = {**OPTIONS, "model.ema_decay": 0.5}
    one = fit(DIGITS, output=tmp_path / "one", **averaged)
    program = ["-m", "focalnet.cli.main"]
    shown = fit_in_two(tmp_path / "two", program, {**averaged, "trainer.strategy": "ddp"})
    assert shown.count("epoch 2/2") == 1  # one process speaks
    assert_the_same_run(one, tmp_path / "two")


@pytest.mark.slow
def test_sharding_changes_nothing_either(tmp_path):
    """Weight decay and clipping included: both need what a shard alone does not show."""
    strong = {**OPTIONS, "model.optimizer.weight_decay": 0.5, "trainer.gradient_clip_val": 0.1}
    one = fit(DIGITS, output=tmp_path / "one", **strong)
    (tmp_path / "program.py").write_text(SHARD_ON_CPU)
    fit_in_two(tmp_path / "two", [str(tmp_path / "program.py")], {**strong, "trainer.strategy": "fsdp"})
    assert_the_same_run(one, tmp_path / "two")


@pytest.mark.parametrize(("option", "value"), [("model.ema_decay", 0.5), ("model.optimizer.name", "muon")])
def test_what_needs_whole_weights_is_not_sharded(tmp_path, option, value):
    with pytest.raises(ConfigError, match=option):
        fit(DIGITS, output=tmp_path, **{**OPTIONS, option: value, "trainer.strategy": "fsdp"})
