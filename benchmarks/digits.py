"""Trains the digits recipe with the command line, and records the result and the time.

    python benchmarks/digits.py

The time is that of the whole command, from start to report. Writes ``benchmarks/results/digits.json``.
"""

from __future__ import annotations

import csv
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "digits.json"
COMMAND = ["focalnet", "fit", "classification/digits"]


def cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def run(folder: Path) -> float:
    """Returns the seconds the command took."""
    started = time.monotonic()
    program = [sys.executable, "-m", "focalnet.cli.main", *COMMAND[1:]]
    subprocess.run([*program, "--output", str(folder), "--trainer.accelerator", "cpu"], check=True)
    return time.monotonic() - started


def main() -> None:
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        seconds = run(folder)
        record = {
            "command": " ".join(COMMAND),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "hardware": f"{os.cpu_count()} cores of {cpu()}",
            "load_before": round(load_before, 2),
            "seconds_of_the_whole_command": round(seconds, 1),
            "results": json.loads((folder / "results.json").read_text()),
            "versions": json.loads((folder / "versions.json").read_text()),
            "epochs": list(csv.DictReader((folder / "metrics.csv").read_text().splitlines())),
        }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
