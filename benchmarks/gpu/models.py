"""Times FocalNet-T on a GPU against its peers: inference and training step in bfloat16, and the memory of each.

    python benchmarks/gpu/models.py [--kernels srf lrf 9-11-13] [--batch 128] [--rounds 7] [--warm] [--toy]

Peers: transformers (the official order of operations), timm eager and compiled, Swin-T of timm compiled (its best
setting). The same random images; engines take turns. ``--warm`` only compiles, so that a later run finds everything in
the compilers' caches. Writes ``benchmarks/results/gpu_models_<kernels>.json``.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring
import timm
import torch
import torch.nn.functional as F
from torch import nn
from transformers import FocalNetConfig, FocalNetForImageClassification

import focalnet

KERNELS = {"srf": (2, 3), "lrf": (3, 3), "9-11-13": (3, 9)}  # levels, first kernel size
CLASSES = 1000


class Logits(nn.Module):
    """A transformers model that returns what the others return."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images).logits


def engines(kernels: str, *, toy: bool) -> dict[str, tuple[Callable[[], nn.Module], bool]]:
    """Name to what builds the model, and whether it is compiled."""
    levels, window = KERNELS[kernels]
    depths, dim = ((1, 1, 1, 1), 16) if toy else ((2, 2, 6, 2), 96)
    shape: dict[str, Any] = {"depths": depths, "embed_dim": dim, "focal_levels": (levels,) * 4}
    shape["focal_windows"] = (window,) * 4

    def ours() -> nn.Module:
        return focalnet.create_model("focalnet_tiny_srf", num_classes=CLASSES, **shape)

    def timms() -> nn.Module:
        return timm.models.FocalNet(num_classes=CLASSES, **shape)

    def theirs() -> nn.Module:
        sizes = [dim * 2**stage for stage in range(4)]
        lists = {name: list(value) if isinstance(value, tuple) else value for name, value in shape.items()}
        return Logits(FocalNetForImageClassification(FocalNetConfig(hidden_sizes=sizes, num_labels=CLASSES, **lists)))

    def swin() -> nn.Module:
        return timm.create_model("swin_tiny_patch4_window7_224", num_classes=CLASSES)

    found = {
        "transformers": (theirs, False),
        "timm": (timms, False),
        "timm, compiled": (timms, True),
        "focalnet": (ours, False),
        "focalnet, compiled": (ours, True),
    }
    return found if toy else {**found, "swin_tiny, compiled": (swin, True)}


def inference(build: Callable[[], nn.Module], compiled: bool, images: torch.Tensor, toy: bool) -> measuring.Case:
    """One forward pass in bfloat16."""
    model = _place(build().to(torch.bfloat16).eval(), compiled, toy)
    images = images.to(torch.bfloat16)

    def run() -> None:
        with torch.inference_mode():
            model(images)

    return run


def training(build: Callable[[], nn.Module], compiled: bool, images: torch.Tensor, toy: bool) -> measuring.Case:
    """Forward, backward and AdamW, parameters in single precision, autocast to bfloat16."""
    model = _place(build().train(), compiled, toy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=measuring.DEVICE.type == "cuda")
    labels = torch.randint(CLASSES, (len(images),), device=measuring.DEVICE)

    def run() -> None:
        with torch.autocast(measuring.DEVICE.type, torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def _place(model: nn.Module, compiled: bool, toy: bool) -> nn.Module:
    model = model.to(measuring.DEVICE)
    if compiled:  # a toy run only traces: compiling takes minutes on a CPU
        model.compile(dynamic=False, backend="eager" if toy else "inductor")
    return model


def peaks(cases: dict[str, measuring.Case]) -> dict[str, float]:
    """MiB that one call of each case needs above what lies on the GPU before it."""
    if measuring.DEVICE.type != "cuda":
        return {}
    found = {}
    for name, case in cases.items():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        case()
        torch.cuda.synchronize()
        found[name] = round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
    return found


def measure(make: Any, kernels: str, images: torch.Tensor, a: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Times, images per second and memory of every engine in one setting."""
    cases: dict[str, measuring.Case] = {}
    failed: dict[str, dict[str, Any]] = {}
    for name, (build, compiled) in engines(kernels, toy=a.toy).items():
        torch.manual_seed(0)
        try:
            cases[name] = make(build, compiled, images, a.toy)
        except Exception as error:  # a peer that cannot run in this version belongs into the table
            failed[name] = {"error": f"{type(error).__name__}: {error}"}
    found = measuring.in_turns(cases, 2 if a.warm else a.rounds, budget_ms=1.0 if a.warm else 60.0) | failed
    memory = peaks({name: case for name, case in cases.items() if "median_ms" in found[name]})
    for name, cell in found.items():
        if "median_ms" in cell:
            cell |= {"images_per_s": round(1e3 * len(images) / cell["median_ms"], 1), "peak_mib": memory.get(name)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", nargs="+", choices=list(KERNELS), default=list(KERNELS))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warm", action="store_true", help="only compile, do not time")
    parser.add_argument("--output", type=Path, default=measuring.RESULTS)
    parser.add_argument("--toy", action="store_true", help="tiny models, to check that the script runs")
    a = parser.parse_args()
    # float32 is timed as it is by default; PyTorch advises a less precise setting at every compilation.
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
    size = 32 if a.toy else 224
    images = torch.randn(2 if a.toy else a.batch, 3, size, size, device=measuring.DEVICE)
    for kernels in a.kernels:
        results: dict[str, Any] = {"batch": len(images), "image_size": size, "dtype": "bfloat16"}
        for what, make in (("inference", inference), ("training", training)):
            results[what] = measure(make, kernels, images, a)
            torch._dynamo.reset()
            for name, cell in results[what].items():
                print(f"{kernels:8s} {what:9s} {name:20s} {cell}", flush=True)
            if not a.warm:
                measuring.write(f"models_{kernels}", results, toy=a.toy, output=a.output)


if __name__ == "__main__":
    main()
