"""Several processes compute what one does."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from focalnet.cli.train import fit
from tests.tasks.toy import TOY, weights_of

DIGITS = "classification/digits"
#: Drop path and mixing are drawn in each process for its own images; everything else is the same.
OPTIONS = {**TOY, "model.options": {**TOY["model.options"], "drop_path_rate": 0.0}, "model.ema_decay": 0.5}


def history(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


@pytest.mark.slow
def test_two_processes_reach_the_loss_of_one(tmp_path):
    one = fit(DIGITS, output=tmp_path / "one", **OPTIONS)
    options = {**OPTIONS, "trainer.devices": 2, "trainer.strategy": "ddp"}
    given = [f"--{name}={value}" for name, value in options.items()]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command = [*torchrun, "-m", "focalnet.cli.main", "fit", DIGITS, "--output", str(tmp_path / "two"), *given]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("epoch 2/2") == 1  # one process speaks

    for name, value in weights_of(one).items():  # only the order of summation differs
        torch.testing.assert_close(weights_of(tmp_path / "two")[name], value, atol=1e-5, rtol=1e-4, msg=name)
    for row, other in zip(history(one), history(tmp_path / "two"), strict=True):
        for name in ("train_loss", "val_loss", "top1", "learning_rate"):
            assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-5), name
