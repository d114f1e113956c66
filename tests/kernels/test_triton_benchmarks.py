"""The GPU benchmarks run, at toy size and without a GPU: what they measure here means nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("script", "options", "written"),
    [
        ("kernels", ("--rounds", "2"), "gpu_kernels.toy.json"),
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
    script = ROOT / "benchmarks" / "gpu.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    named = [word.strip('"') for word in script.read_text().split() if word.startswith(("benchmarks/gpu/", "tests/"))]
    assert named
    assert all((ROOT / name).exists() for name in named)
