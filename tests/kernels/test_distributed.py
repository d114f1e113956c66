"""Fused models wrapped by DDP, FSDP1 and FSDP2 compute and learn what the plain modules do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the process printed, by model and wrapper."""
    rendezvous = tmp_path_factory.mktemp("distributed") / "store"
    command = [sys.executable, "-m", "tests.kernels.distributed", str(rendezvous)]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [line.rpartition(": ") for line in done.stdout.splitlines() if ": undo: " not in line]
    undo = [line.partition(": undo: ") for line in done.stdout.splitlines() if ": undo: " in line]
    return {name: numbers for name, _, numbers in found} | {f"{kind}: undo": error for kind, _, error in undo}


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp1", "fsdp2"])
@pytest.mark.parametrize("kind", ["ours", "ours, large", "timm", "transformers"])
def test_outputs_and_a_step_are_those_of_plain_modules(lines: dict[str, str], kind: str, wrapper: str) -> None:
    first, second, changed = map(float, lines[f"{kind}: {wrapper}"].split())
    assert first < 1e-4
    assert second < 1e-4
    assert changed > 2e-4


@pytest.mark.parametrize("kind", ["ours", "ours, large"])
def test_undo_names_what_has_to_go_first(lines: dict[str, str], kind: str) -> None:
    assert "on top of the fused class: first undo what made it (fully_shard" in lines[f"{kind}: undo"]
