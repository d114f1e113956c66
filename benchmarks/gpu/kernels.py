"""Times the operation on a GPU: forward and backward, eager against our kernels, beside the speed of a plain copy.

    python benchmarks/gpu/kernels.py [--kernels srf lrf 9-11-13] [--batch 128] [--rounds 9] [--toy]

``gbps`` counts what the operation must move at least: context, gates and output once, for training also the gradients
and the inputs again; ``of_copy`` is its share of what a large copy reaches in the same run. ``modulation`` has whole
modules in the forms that are to be decided on a GPU (``kernels/triton/forms.py``): without any, each alone, and all.
Writes ``benchmarks/results/gpu_kernels_<kernels>.json``.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import measuring
import torch
import torch.nn.functional as F

from focalnet.kernels import backend, focal_context, modulator
from focalnet.kernels.fused import FusedFocalModulation
from focalnet.kernels.triton import forms

KERNELS = {"srf": (3, 5), "lrf": (3, 5, 7), "9-11-13": (9, 11, 13)}
STAGES = ((56, 56, 96), (28, 28, 192), (14, 14, 384), (7, 7, 768))  # FocalNet-T at 224 pixels
DETECTION = (200, 304, 96)  # its first stage at 800 x 1216
CACHE = 200e6  # bytes of inputs in rotation, several times the L2 cache


def copy_limit(dtype: torch.dtype, *, toy: bool) -> float:
    """GB/s of a device-to-device copy, bytes read and written."""
    source = torch.randn(1 << (10 if toy else 30), device=measuring.DEVICE, dtype=dtype)
    target = torch.empty_like(source)
    times = measuring.in_turns({"copy": lambda: target.copy_(source)}, rounds=5)["copy"]
    return 2 * source.nbytes / times["median_ms"] / 1e6


def row(shape: tuple[int, int, int, int], kernels: tuple[int, ...], rounds: int, copy: float) -> dict[str, Any]:
    """Times of one map and kernel set."""
    B, H, W, C = shape
    width, L = 2 * C + len(kernels) + 1, len(kernels)
    dtype, device = torch.bfloat16 if measuring.DEVICE.type == "cuda" else torch.float32, measuring.DEVICE
    sets = max(1, min(8, round(CACHE / (B * H * W * width * dtype.itemsize))))
    projections = [torch.randn(B, H, W, width, dtype=dtype, device=device, requires_grad=True) for _ in range(sets)]
    weights = [(torch.randn(C, 1, k, k, dtype=dtype, device=device) / k).requires_grad_() for k in kernels]
    grad = torch.randn(shape, dtype=dtype, device=device)
    turn = itertools.cycle(projections)

    def forward(projection: torch.Tensor) -> torch.Tensor:
        _, context, gates = projection.split((C, C, L + 1), -1)
        return focal_context(context, gates, weights)

    def inference(name: backend.Backend) -> None:
        with torch.no_grad(), backend.use(name):
            forward(next(turn))

    def training(name: backend.Backend) -> None:
        projection = next(turn)
        with backend.use(name):
            torch.autograd.grad(forward(projection), [projection, *weights], grad)

    ours: backend.Backend = "triton" if device.type == "cuda" else "native"
    pixels = B * H * W * dtype.itemsize
    least = {"forward": pixels * (2 * C + L + 1), "training": pixels * (5 * C + 3 * (L + 1))}
    found = {}
    for what, run in (("forward", inference), ("training", training)):
        cases = {"eager": lambda run=run: run("eager"), "ours": lambda run=run: run(ours)}
        found[what] = measuring.in_turns(cases, rounds)
        for cell in found[what].values():
            if "median_ms" in cell:
                cell["gbps"] = round(least[what] / cell["median_ms"] / 1e6, 1)
                cell["of_copy"] = round(cell["gbps"] / copy, 3)
    return {"map": shape, "kernels": kernels, "dtype": str(dtype), **found}


def modulation_row(shape: tuple[int, int, int, int], kernels: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Times of a whole focal modulation in every form."""
    dtype, device = torch.bfloat16 if measuring.DEVICE.type == "cuda" else torch.float32, measuring.DEVICE
    module = FusedFocalModulation(shape[3], len(kernels), kernels[0]).to(device, dtype)
    x = torch.randn(shape, dtype=dtype, device=device, requires_grad=True)
    grad = torch.randn(shape, dtype=dtype, device=device)
    parameters = list(module.parameters())

    def inference(*chosen: str) -> None:
        with torch.no_grad(), forms.use(*chosen):
            module(x)

    def training(*chosen: str) -> None:
        with forms.use(*chosen):
            torch.autograd.grad(module(x), [x, *parameters], grad)

    found = {}
    for what, run in (("forward", inference), ("training", training)):
        cases = {
            " and ".join(chosen) or "usual": lambda run=run, chosen=chosen: run(*chosen)
            for chosen in ((), *((form,) for form in forms.FORMS), forms.FORMS)
        }
        found[what] = measuring.in_turns(cases, rounds)
    return {"map": shape, "kernels": kernels, "dtype": str(dtype), **found}


def projection_row(shape: tuple[int, int, int, int], levels: int, rounds: int) -> dict[str, Any]:
    """The projection f as published, and with its width rounded up as in the form ``padded``."""
    B, H, W, C = shape
    device, width = measuring.DEVICE, 2 * C + levels + 1
    x = torch.randn(B * H * W, C, dtype=torch.bfloat16, device=device)
    padded = -(-width // modulator.ALIGNED) * modulator.ALIGNED
    weights = {n: torch.randn(n, C, dtype=torch.bfloat16, device=device) for n in (width, padded)}
    cases = {f"{n} columns": lambda w=w: F.linear(x, w) for n, w in weights.items()}
    return {"map": shape, "levels": levels, **measuring.in_turns(cases, rounds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", nargs="+", choices=list(KERNELS), default=list(KERNELS))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=measuring.RESULTS)
    parser.add_argument("--toy", action="store_true", help="tiny sizes, to check that the script runs")
    a = parser.parse_args()
    copy = copy_limit(torch.bfloat16, toy=a.toy)
    print(f"copy {copy:.0f} GB/s")
    for name in a.kernels:
        measure(name, copy, a)


def measure(name: str, copy: float, a: argparse.Namespace) -> None:
    """All rows of a kernel set; writes after every row, so that what is measured stays."""
    kernels = (3,) if a.toy else KERNELS[name]
    maps = [(1, 6, 6, 8)] if a.toy else [(a.batch, *stage) for stage in STAGES]
    results: dict[str, Any] = {"copy_gbps": round(copy, 1), "operation": [], "modulation": [], "projection": []}
    detection = [(2, *DETECTION)] if name == "9-11-13" and not a.toy else []
    for table, row_of, shapes in (
        ("operation", lambda shape: row(shape, kernels, a.rounds, copy), maps + detection),
        ("modulation", lambda shape: modulation_row(shape, kernels, a.rounds), maps),
    ):
        for shape in shapes:
            results[table].append(found := row_of(shape))
            cells = [f"{w} {n} {c.get('median_ms', c)}" for w in ("forward", "training") for n, c in found[w].items()]
            print(table, *shape, kernels, *cells, sep="  ", flush=True)
            measuring.write(f"kernels_{name}", results, toy=a.toy, output=a.output)
    with torch.no_grad():
        results["projection"] = [projection_row(shape, len(kernels), a.rounds) for shape in maps]
    measuring.write(f"kernels_{name}", results, toy=a.toy, output=a.output)


if __name__ == "__main__":
    main()
