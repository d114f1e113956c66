"""Compares the speed of two versions of this library on the CPU, interleaved in one run.

    git worktree add ../before 10532b5 && (cd ../before && python setup.py build_ext --inplace)
    python benchmarks/two_installs.py ../before/src src [--cases optimized training] [--rounds 15] [--tag zen4]

Each case runs in two processes, one for each version, which take turns; the one that starts alternates from round to
round. The result is the ratio of the medians, and that of each round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

Run = Callable[[], object]
SLOWER = 1.02  # largest acceptable ratio of a change


def inference(dtype: str, batch: int, optimized: bool) -> Run:
    """FocalNet-T SRF at 224 x 224."""
    import torch

    import focalnet

    model = focalnet.create_model("focalnet_tiny_srf").eval().to(getattr(torch, dtype))
    if optimized:
        focalnet.optimize(model)
    images = torch.randn(batch, 3, 224, 224, dtype=getattr(torch, dtype))
    return torch.no_grad()(lambda: model(images))


def detection(dtype: str) -> Run:
    """The backbone with kernels 9, 11, 13 as detectors have it, optimized, one image of 800 x 1216."""
    import torch

    import focalnet

    options = {"focal_windows": (9,) * 4, "features_only": True}
    model = focalnet.create_model("focalnet_tiny_lrf", **options).eval().to(getattr(torch, dtype))
    focalnet.optimize(model)
    images = torch.randn(1, 3, 800, 1216, dtype=getattr(torch, dtype))
    return torch.no_grad()(lambda: model(images))


def training(dtype: str, kind: str, save_memory: bool = False) -> Run:
    """A step (forward, loss, backward) of batch 16."""
    import torch
    import torch.nn.functional as F

    import focalnet

    model = focalnet.create_model(f"focalnet_tiny_{kind}").train()
    if save_memory:
        focalnet.optimize(model, for_="training", save_memory=True)
    images, labels = torch.randn(16, 3, 224, 224), torch.randint(1000, (16,))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16" else nullcontext():
            loss = F.cross_entropy(model(images), labels)
        loss.backward()

    return step


def accelerated(dtype: str, library: str) -> Run:
    """FocalNet-T SRF of another library on our kernels, one image of 224 x 224."""
    import timm
    import torch
    from transformers import FocalNetConfig, FocalNetForImageClassification

    import focalnet

    if library == "timm":
        model = timm.create_model("focalnet_tiny_srf")
    else:
        config = FocalNetConfig(depths=[2, 2, 6, 2], focal_levels=[2] * 4, focal_windows=[3] * 4, num_labels=1000)
        model = FocalNetForImageClassification(config)
    model = focalnet.accelerate(model.eval().to(getattr(torch, dtype)))
    images = torch.randn(1, 3, 224, 224, dtype=getattr(torch, dtype))
    return torch.no_grad()(lambda: model(images))


def cases() -> dict[str, Callable[[], Run]]:
    """Every case by its name."""
    found: dict[str, Callable[[], Run]] = {}
    for dtype in ("float32", "bfloat16"):
        for batch in (1, 8):
            found[f"optimized, {dtype}, batch {batch}"] = partial(inference, dtype, batch, True)
            found[f"default, {dtype}, batch {batch}"] = partial(inference, dtype, batch, False)
        for kind in ("srf", "lrf"):
            found[f"training, {dtype}, {kind}"] = partial(training, dtype, kind)
        found[f"detection, {dtype}"] = partial(detection, dtype)
        for library in ("timm", "transformers"):
            found[f"accelerated {library}, {dtype}, batch 1"] = partial(accelerated, dtype, library)
    found["save_memory, float32, srf"] = partial(training, "float32", "srf", True)
    return found


def work(case: str) -> None:
    """A version's process: builds the case, then runs it whenever a line comes in; answers with seconds."""
    import torch

    import focalnet

    focalnet.optimize(torch.nn.Identity())  # for what it does to the process: freed memory is kept
    torch.manual_seed(0)
    run = cases()[case]()
    for _ in range(3):
        run()
    print("ready", flush=True)
    for line in sys.stdin:
        repeats = int(line)
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        print((time.perf_counter() - start) / repeats, flush=True)


class Version:
    """A process that has one version loaded and does nothing until asked."""

    def __init__(self, source: Path, case: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(source.resolve())}
        command = [sys.executable, __file__, "--work", case]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        while (line := self._answer()) != "ready":
            if not line:
                raise SystemExit(f"{source}: the case {case} does not run there")

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def seconds(self, repeats: int) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{repeats}\n")
        self.process.stdin.flush()
        return float(self._answer())

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(case: str, before: Path, after: Path, rounds: int) -> dict[str, Any]:
    """Times both versions in turns; a turn lasts at least a quarter of a second."""
    versions = [Version(before, case), Version(after, case)]
    repeats = max(1, round(0.25 / versions[0].seconds(1)))
    times: list[list[float]] = [[], []]
    for turn in range(rounds):
        for i in (0, 1) if turn % 2 else (1, 0):
            times[i].append(versions[i].seconds(repeats))
    for version in versions:
        version.end()
    of_rounds = [b / a for a, b in zip(*times, strict=True)]
    medians = [statistics.median(t) for t in times]
    return {
        "before_ms": round(1e3 * medians[0], 3),
        "after_ms": round(1e3 * medians[1], 3),
        "ratio": round(medians[1] / medians[0], 4),
        "ratio_of_rounds": round(statistics.median(of_rounds), 4),
        "seconds": times,
    }


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", nargs="?", type=Path, help="folder with the package before the change")
    parser.add_argument("after", nargs="?", type=Path, help="folder with the package after the change")
    parser.add_argument("--cases", nargs="+", default=[""], help="prefixes of cases to run; default: all")
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each; default: %(default)s")
    parser.add_argument("--tag", help="suffix of the result file")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work)
        return
    if not (arguments.before and arguments.after):
        parser.error("two folders are needed: the package before and after")
    import studies

    report: dict[str, Any] = {"study": __doc__, **studies.head(("torch", "timm", "transformers")), "cases": {}}
    path = studies.RESULTS / f"two_installs{f'_{arguments.tag}' if arguments.tag else ''}.json"
    for case in cases():
        if not case.startswith(tuple(arguments.cases)):
            continue
        result = compare(case, arguments.before, arguments.after, arguments.rounds)
        report["cases"][case] = result
        path.write_text(json.dumps(report, indent=1) + "\n")
        mark = "  slower" if min(result["ratio"], result["ratio_of_rounds"]) > SLOWER else ""
        shown = f"{result['before_ms']:9.2f} ms {result['after_ms']:9.2f} ms"
        print(f"{case:42s} {shown}  {result['ratio']:.3f}, by rounds {result['ratio_of_rounds']:.3f}{mark}", flush=True)


if __name__ == "__main__":
    main()
