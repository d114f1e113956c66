"""Measures inference of this library against timm and transformers, in turns inside one run.

    python benchmarks/run.py [--model focalnet_tiny_srf] [--batch 1 8] [--rounds 15]

The peers hold the same weights. Each round times every engine once, in rotating order, so that a slow moment of the
machine meets all of them; the medians and the spread are written to ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import transformers
from transformers import FocalNetConfig as TheirConfig
from transformers import FocalNetForImageClassification

import focalnet

RESULTS = Path(__file__).parent / "results"


def engines(name: str) -> dict[str, Callable[[torch.Tensor], object]]:
    """The same architecture in each library, in its default setting and evaluation mode."""
    ours = focalnet.create_model(name).eval()
    shape = ours.config
    theirs = TheirConfig(
        embed_dim=shape.embed_dim,
        depths=list(shape.depths),
        hidden_sizes=list(shape.channels),
        focal_levels=list(shape.focal_levels),
        focal_windows=list(shape.focal_windows),
        use_conv_embed=shape.overlapped,
        use_post_layernorm=shape.post_norm,
        use_layerscale=shape.layer_scale is not None,
    )
    return {
        "focalnet": ours,
        "timm": timm.create_model(name, pretrained=False).eval(),
        "transformers": FocalNetForImageClassification(theirs).eval(),
    }


def seconds(engine: Callable[[torch.Tensor], object], images: torch.Tensor) -> float:
    start = time.perf_counter()
    engine(images)
    return time.perf_counter() - start


@torch.inference_mode()
def measure(name: str, batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each engine: median, and the quartiles as spread."""
    running = engines(name)
    images = torch.randn(batch, 3, 224, 224)
    times: dict[str, list[float]] = {label: [] for label in running}
    order = list(running)
    for turn in range(rounds + 2):  # two rounds to warm up
        for label in order[turn % len(order) :] + order[: turn % len(order)]:
            elapsed = seconds(running[label], images)
            if turn >= 2:
                times[label].append(1e3 * elapsed)
    quartiles = {label: statistics.quantiles(values, n=4) for label, values in times.items()}
    return {label: {"q1": q[0], "median_ms": q[1], "q3": q[2]} for label, q in quartiles.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="focalnet_tiny_srf")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    rows = {f"batch {n}": measure(arguments.model, n, arguments.rounds) for n in arguments.batch}
    report = {
        "command": f"python benchmarks/run.py --model {arguments.model}",
        "date": datetime.date.today().isoformat(),
        "hardware": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {
            "torch": torch.__version__,
            "timm": timm.__version__,
            "transformers": transformers.__version__,
            "focalnet": focalnet.__version__,
        },
        "dtype": "float32",
        "image_size": 224,
        "results": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"inference_{arguments.model}.json").write_text(json.dumps(report, indent=1) + "\n")
    for row, cells in rows.items():
        for label, cell in cells.items():
            print(f"{row:10s} {label:14s} {cell['median_ms']:8.1f} ms  ({cell['q1']:.1f} to {cell['q3']:.1f})")


if __name__ == "__main__":
    main()
