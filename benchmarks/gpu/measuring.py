"""What the GPU benchmarks share: timing in turns, what the machine is, where results go."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parents[1] / "results"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PACKAGES = ("focalnet", "torch", "triton", "timm", "transformers", "lightning")
Case = Callable[[], object]


def milliseconds(case: Case, repeats: int) -> float:
    """Of one call, over ``repeats`` calls in a row: on the GPU's own clock where there is one."""
    if DEVICE.type != "cuda":
        start = time.perf_counter()
        for _ in range(repeats):
            case()
        return 1e3 * (time.perf_counter() - start) / repeats
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(repeats):
        case()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / repeats


def in_turns(cases: dict[str, Case], rounds: int, budget_ms: float = 60.0) -> dict[str, dict[str, Any]]:
    """Each round times every case once, in rotating order, so that a slow moment of the machine meets all of them.

    A case that fails is reported as its error and does not lose the others.

    Args:
        cases: name to what is timed.
        rounds: measurements of each case, two at least.
        budget_ms: about how long one measurement takes; short cases are repeated within it.

    Returns:
        Name to median and quartiles in milliseconds.
    """
    found: dict[str, dict[str, Any]] = {}
    repeats: dict[str, int] = {}
    for name, case in cases.items():
        try:
            for _ in range(3):  # compiles, fills caches
                once = milliseconds(case, 1)
            repeats[name] = max(1, min(100, round(budget_ms / max(once, 1e-3))))
        except Exception as error:  # whatever a peer raises belongs into the table
            found[name] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    times: dict[str, list[float]] = {name: [] for name in repeats}
    order = list(repeats)
    for turn in range(rounds):
        for name in order[turn % len(order) :] + order[: turn % len(order)] if order else ():
            times[name].append(milliseconds(cases[name], repeats[name]))
    for name, values in times.items():
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        found[name] = {"median_ms": round(median, 4), "q1": round(q1, 4), "q3": round(q3, 4)}
    return {name: found[name] for name in cases}


def write(name: str, results: Any, *, toy: bool, output: Path = RESULTS) -> Path:
    """Writes ``gpu_<name>.json``; a toy run, which measures nothing, says so in its name."""
    gpu = torch.cuda.get_device_name() if DEVICE.type == "cuda" else None
    report = {
        "command": shlex.join(["python", f"benchmarks/gpu/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "hardware": gpu or f"{platform.machine()}, {torch.get_num_threads()} threads",
        "cuda": torch.version.cuda,
        "versions": {package: _version(package) for package in PACKAGES},
        "results": results,
    }
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"gpu_{name}{'.toy' if toy else ''}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # focalnet itself, run from its source folder
        return getattr(sys.modules.get(package), "__version__", None)
