"""The GPU benchmarks run, at toy size and without a GPU: what they measure here means nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("transformers")
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"


@pytest.mark.parametrize(
    ("script", "options", "written"),
    [
        ("kernels", ("--rounds", "2", "--kernels", "srf"), "gpu_kernels_srf.toy.json"),
        ("models", ("--rounds", "2", "--kernels", "srf"), "gpu_models_srf.toy.json"),
    ],
)
def test_benchmarks_run_and_write_their_results(
    tmp_path: Path, script: str, options: tuple[str, ...], written: str
) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu" / f"{script}.py"), "--toy", "--output", str(tmp_path)]
    done = subprocess.run(
        [*command, *options], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / written).read_text())
    assert report["versions"]["torch"]
    assert report["hardware"]
    assert report["command"].startswith(f"python benchmarks/gpu/{script}.py")
    assert "error" not in json.dumps(report["results"])
    assert "median_ms" in json.dumps(report["results"])


def test_the_script_is_valid_and_names_files_that_exist() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    named = [word.strip('"') for word in SCRIPT.read_text().split() if word.startswith(("benchmarks/gpu/", "tests/"))]
    assert named
    assert all((ROOT / name).exists() for name in named)


def test_figures_come_within_two_and_ten_minutes() -> None:
    """Even if every step takes all of its limit; the seconds between the steps are those of one query of the GPU."""
    environment = {**os.environ, "FOCALNET_SHARED": str(ROOT / "tests")}
    command = ["bash", str(SCRIPT), "--dry-run"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    steps = re.findall(r"^(\S+): starts within (\d+) s, at most (\d+) s: .*$", done.stdout, re.M)
    ends = {name: int(start) + int(limit) for name, start, limit in steps}
    assert ends["kernels-srf"] <= 110
    assert ends.pop("tests") > 600
    assert max(ends.values()) + 60 <= 590  # training, which is not planned without data, has 60
    assert "training: no FOCALNET_SHARED" in done.stdout


def test_a_step_that_takes_too_long_is_cut_and_the_rest_is_skipped(tmp_path: Path) -> None:
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\ncase "$*" in *get_device_capability*) exit 1;; esac\necho ran "$@"; sleep 30\n')
    stub.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(stub), "OUT": str(tmp_path), "BUDGET": "3", "TEST_SECONDS": "0"}
    began = time.monotonic()
    done = subprocess.run(["bash", str(SCRIPT)], env=environment, capture_output=True, text=True, check=False)
    assert time.monotonic() - began < 20
    assert done.returncode == 1
    assert "== doctor (at most 3 s)" in done.stdout
    assert "== doctor: exit 124" in done.stdout  # what timeout gives
    assert re.search(r"== kernels-srf: skipped, 0 s of 3 s are left and it may take 45 s", done.stdout)
    assert "failed: models-lrf: skipped" in done.stdout
    assert (tmp_path / "doctor.log").read_text().startswith("ran ")
    assert not (tmp_path / "kernels-srf.log").exists()
