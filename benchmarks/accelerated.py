"""Measures the gain of ``focalnet.accelerate``: FocalNet-T of timm and of transformers, before and after, interleaved.

    python benchmarks/accelerated.py [--rounds 15] [--side 224] [--batches 1 8] [--out results.json]

(A script named accelerate.py would shadow the package of that name, which transformers imports.)

Both have the same random weights, on which the speed does not depend. The file has all times, not only medians.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peers
import studies
import torch
import torch.nn.functional as F
from torch import nn

import focalnet
from focalnet.cli.benchmark import in_turns
from focalnet.kernels.memory import keep_freed_memory

LIBRARIES = {"timm": peers.of_timm, "transformers": peers.official_order}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Calls = dict[str, Callable[[], object]]


def inference(batch: int, side: int) -> Iterator[tuple[str, Calls]]:
    """A forward pass of the whole classifier in the dtype of its weights."""
    for library, build in LIBRARIES.items():
        for kind in ("srf", "lrf"):
            for name, dtype in DTYPES.items():
                images = torch.randn(batch, 3, side, side, dtype=dtype)
                before = build(kind).eval().to(dtype)
                models = _both(before)
                yield f"{library} {kind} {name}", {k: _forward(model, images) for k, model in models.items()}


def training(batch: int, side: int) -> Iterator[tuple[str, Calls]]:
    """Forward, loss, backward; bfloat16 as autocast over float32 weights."""
    images, labels = torch.randn(batch, 3, side, side), torch.randint(1000, (batch,))
    for library, build in LIBRARIES.items():
        for kind in ("srf", "lrf"):
            for name in DTYPES:
                models = _both(build(kind).train())
                autocast = name == "bfloat16"
                steps = {k: _step(model, images, labels, autocast=autocast) for k, model in models.items()}
                yield f"{library} {kind} {name}", steps


def _both(model: nn.Module) -> dict[str, nn.Module]:
    return {"before": model, "accelerated": focalnet.accelerate(copy.deepcopy(model))}


def _forward(model: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    def forward() -> None:
        with torch.inference_mode():
            model(images)

    return forward


def _step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, autocast: bool) -> Callable[[], object]:
    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()

    return step


def main() -> None:
    """Measures every case; writes the file after each, so that an interruption loses only the current one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each; default: %(default)s")
    parser.add_argument("--side", type=int, default=224, help="image side in pixels; default: %(default)s")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="batch sizes; default: 1 8")
    parser.add_argument("--out", type=Path, default=studies.RESULTS / "accelerate.json")
    arguments = parser.parse_args()
    keep_freed_memory()  # for both alike
    report: dict[str, Any] = {
        **studies.head(("torch", "timm", "transformers")),
        "seconds": {},
        "speedup": {},
    }
    for study in (inference, training):
        for batch in arguments.batches:
            for case, calls in study(batch, arguments.side):
                label = f"{study.__name__}, batch {batch}, {case}"
                timings = in_turns(calls, arguments.rounds)
                report["seconds"][label] = {name: timing.seconds for name, timing in timings.items()}
                report["speedup"][label] = timings["before"].median / timings["accelerated"].median
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                arguments.out.write_text(json.dumps(report, indent=1) + "\n")
                spread = ", ".join(
                    f"{name} {1e3 * t.median:.1f} ms ({1e3 * t.quartiles[0]:.1f} to {1e3 * t.quartiles[1]:.1f})"
                    for name, t in timings.items()
                )
                print(f"{label:52s} {spread}  {report['speedup'][label]:.2f}x")


if __name__ == "__main__":
    main()
