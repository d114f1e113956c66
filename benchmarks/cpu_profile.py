"""Where the time of a forward pass goes, by kind of operation: FocalNet-T in several engines, 224 x 224, batch 8.

    python benchmarks/cpu_profile.py [--rounds 20]

Engines take turns, and the table has medians. PyTorch's profiler adds up what each operation takes itself; what is left
of the time that passed is Python, dispatch, waiting and the profiler. Writes ``benchmarks/results/cpu_profile.json``,
of which ``show.py`` makes a table.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import statistics
import time
from pathlib import Path
from typing import Any

import peers
import torch
import torch._inductor.config
from torch.profiler import ProfilerActivity, profile, record_function

import focalnet
from focalnet.ops import native
from focalnet.ops.memory import keep_freed_memory

RESULT = Path(__file__).parent / "results" / "cpu_profile.json"
BATCH = 8
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KERNELS = "our CPU kernels"  # what ``_mark_kernels`` calls them
KINDS = (
    "matrix products",
    "stem and down-sampling",
    "depthwise convolutions, GELU, gates",
    "layer norms, with sums where fused",
    "other sums, products, copies",
    "Python, dispatch, profiler",
)


def kind(name: str, shapes: list[list[int]]) -> str | None:
    """What an operation of the profiler is for; None for one that only calls others."""
    products, patches, context, norms, other, _ = KINDS
    if "convolution" in name and len(maps := [shape for shape in shapes if len(shape) == 4]) > 1:
        _, inputs, height, _ = maps[-1]  # the weight; before it the input, and what is added where that is fused
        return products if height == 1 else context if inputs == 1 else patches
    if name == KERNELS or "gelu" in name:
        return context
    if "linear" in name.partition("::")[2] or name in ("aten::mm", "aten::addmm"):
        return products if name.startswith(("mkldnn::", "mkl::", "aten::")) else None
    if "layer_norm" in name:
        return norms
    return other if name.startswith(("aten::", "graph_")) else None


def parts(call: peers.Call, images: torch.Tensor) -> dict[str, float]:
    """Seconds of a call by kind; they add up to its time."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        start = time.perf_counter()
        call(images)
        seconds = time.perf_counter() - start
    found = dict.fromkeys(KINDS, 0.0)
    for event in profiler.key_averages(group_by_input_shape=True):
        if (of := kind(event.key, event.input_shapes)) is not None:
            found[of] += event.self_cpu_time_total / 1e6
    found[KINDS[-1]] = seconds - sum(found.values())
    return found


def in_turns(calls: dict[str, peers.Call], images: torch.Tensor, rounds: int) -> dict[str, dict[str, float]]:
    """The parts of each engine, one call a round; medians of every part."""
    for call in [*calls.values()] * 3:
        call(images)
    found: dict[str, list[dict[str, float]]] = {label: [] for label in calls}
    for _ in range(rounds):
        for label, call in calls.items():
            found[label].append(parts(call, images))
    return {label: {k: statistics.median(one[k] for one in of) for k in KINDS} for label, of in found.items()}


def engines(dtype: torch.dtype) -> dict[str, peers.Call]:
    """Each ready to be called."""
    return {
        "timm, compiled": peers.compiled(peers.of_timm("srf").eval().to(dtype)),
        "focalnet, optimized": peers.optimized(peers.ours("srf"), dtype),
        "focalnet, optimized, compiled": peers.compiled(peers.optimized(peers.ours("srf"), dtype)),
    }


def _mark_kernels() -> None:
    """Lets the profiler see the kernels that are called past PyTorch."""
    run = native.Library._run

    def marked(*args: Any, **kwargs: Any) -> None:
        with record_function(KERNELS):
            run(*args, **kwargs)

    native.Library._run = marked  # type: ignore[method-assign]


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    rounds: int = parser.parse_args().rounds
    keep_freed_memory()
    _mark_kernels()
    torch._inductor.config.cpp.enable_kernel_profile = True
    report: dict[str, Any] = {
        "command": f"python benchmarks/cpu_profile.py --rounds {rounds}",
        "date": datetime.date.today().isoformat(),
        "hardware": f"{peers.processor()}, {torch.get_num_threads()} threads",
        "versions": {
            "focalnet": focalnet.__version__,
            **{p: importlib.metadata.version(p) for p in ("torch", "timm", "transformers")},
        },
        "profile": {},
    }
    with torch.no_grad():
        for name, dtype in DTYPES.items():
            images = torch.randn(BATCH, 3, 224, 224, dtype=dtype)
            report["profile"][name] = in_turns(engines(dtype), images, rounds)
            for label, found in report["profile"][name].items():
                print(name, label, {part: round(1e3 * s, 1) for part, s in found.items()}, flush=True)
            torch._dynamo.reset()
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
