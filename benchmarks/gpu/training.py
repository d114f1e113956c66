"""A short real training run on a GPU: FocalNet-nano on CIFAR-10 by its recipe, for a few epochs.

    python benchmarks/gpu/training.py --data FOLDER/cifar10 [--epochs 3]

Writes ``benchmarks/results/gpu_training.json``: what the run reports of itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measuring


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--output", type=Path, default=measuring.RESULTS)
    a = parser.parse_args()
    recipe = [sys.executable, "-m", "focalnet.cli.main", "fit", "classification/cifar10_nano", "--data.root", a.data]
    with tempfile.TemporaryDirectory() as folder:
        options = ["--trainer.max_epochs", str(a.epochs), "--output", f"{folder}/run"]
        started = time.monotonic()
        subprocess.run([*recipe, *options], check=True)
        results = json.loads(Path(folder, "run", "results.json").read_text())
    results["seconds_of_the_whole_command"] = round(time.monotonic() - started, 1)
    print(results)
    measuring.write("training", results, toy=False, output=a.output)


if __name__ == "__main__":
    main()
