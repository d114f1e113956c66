"""Compares whole detectors and segmenters with other libraries: interleaved times, and memory of a training step."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import peers
import torch

import focalnet
from focalnet.cli.benchmark import Timing, in_turns
from focalnet.kernels.memory import keep_freed_memory

RESULTS = Path(__file__).parent / "results"
Call = Callable[[], object]
Engines = dict[str, Callable[[], Call]]  # functions that build each engine; the first is ours
Study = Callable[[], Engines]


def run(
    studies: dict[str, Study], doc: str | None, name: str, packages: tuple[str, ...], **more: Callable[[int], Any]
) -> None:
    """Reads the command line, measures every study, and writes the file after each.

    An interruption loses only the current study.

    Args:
        studies: by name; memory is also measured for those whose name ends in "training".
        doc: description for ``--help``.
        name: of the result file.
        packages: whose versions are recorded in the result.
        more: further entries of the report, computed from the number of rounds.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", choices=[*studies, []], help="studies to run; default: all")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each engine; default: %(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        study, engine = arguments.peak
        return print_peak(studies[study]()[engine])
    chosen = {name: studies[name] for name in arguments.studies or studies}
    keep_freed_memory()  # for every engine alike
    report: dict[str, Any] = {
        **head(packages),
        "studies": {study: build.__doc__ for study, build in chosen.items()},
        "seconds": {},
        "times_ours": {},
        "peak_gib": {},
    }
    for study, engines_of in chosen.items():
        engines = engines_of()
        timings = in_turns({label: build() for label, build in engines.items()}, arguments.rounds, warmup=1)
        ours = next(iter(timings.values())).median
        memory = peaks(study, list(engines)) if study.endswith("training") else {}
        report["seconds"][study] = {label: timing.seconds for label, timing in timings.items()}
        report["times_ours"][study] = {label: timing.median / ours for label, timing in timings.items()}
        report["peak_gib"][study] = memory
        _write(report, arguments.out)
        print("\n".join(lines(study, timings, memory)), flush=True)
    for key, measure in more.items():
        report[key] = measure(arguments.rounds)
        _write(report, arguments.out)
        print(json.dumps(report[key], indent=1))


def head(packages: Iterable[str]) -> dict[str, Any]:
    """What every result says of itself: command, date, machine, and the versions of these packages."""
    return {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "hardware": (
            f"{peers.processor()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
        ),
        "versions": {"focalnet": focalnet.__version__} | {p: importlib.metadata.version(p) for p in packages},
    }


def peaks(study: str, engines: list[str]) -> dict[str, float]:
    """The most memory of a process that builds one engine and makes two steps, GiB, beyond what its imports took."""
    command = [sys.executable, sys.argv[0], "--peak", study]
    return {label: float(subprocess.check_output([*command, label], text=True).split()[-1]) for label in engines}


def print_peak(build: Callable[[], Call]) -> None:
    """Measures this process."""
    before = _peak()
    step = build()
    for _ in range(2):
        step()
    print((_peak() - before) / 2**20)


def lines(study: str, timings: dict[str, Timing], memory: dict[str, float]) -> Iterator[str]:
    """The table, each engine with its time over ours."""
    ours = next(iter(timings.values())).median
    for label, timing in timings.items():
        low, high = timing.quartiles
        spread = f"{1e3 * timing.median:8.0f} ms  ({1e3 * low:.0f} to {1e3 * high:.0f})  {timing.median / ours:5.2f}x"
        yield f"{study:22s} {label:34s} {spread}" + (f"  {memory[label]:6.2f} GiB" if label in memory else "")


def _peak() -> int:
    """The most memory that this program had, KiB. getrusage's figure counts the one that started it, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def _write(report: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
