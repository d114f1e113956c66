"""Measures deformable attention on the CPU against the function that transformers has for it, in turns inside one run.

    python benchmarks/deformable.py [strides_4_to_64] [strides_8_to_128] [--rounds 5] [--out results.json]

The encoder of a detector: 5 feature maps of an image of 800 x 1333, every cell of which is a query; 8 heads of 32
channels look at 4 points on each map, a few cells away. Forward alone (without gradients), and a training step:
forward and backward, with gradients of values, locations and weights. One thread, and the processor's time, which
counts on a shared machine, too; the ratios are medians of those of each round. Memory is that of the training step: the
tensors that autograd keeps between the passes, each storage once, and the most memory of a process of its own that
makes two steps, beyond what its imports took.

transformers has one function, ``multi_scale_deformable_attention``, for Mask2Former, Deformable DETR and others. It
samples by ``grid_sample``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import studies
import torch
from torch import Tensor
from transformers.models.mask2former.modeling_mask2former import multi_scale_deformable_attention as by_transformers

from focalnet.kernels import backend, deformable_attention

SIZE, HEADS, CHANNELS, POINTS = (800, 1333), 8, 32, 4
STRIDES = {"strides_4_to_64": (4, 8, 16, 32, 64), "strides_8_to_128": (8, 16, 32, 64, 128)}
OURS, EAGER, THEIRS = "focalnet", "focalnet, eager", "transformers"
Inputs = tuple[Tensor, list[tuple[int, int]], Tensor, Tensor]


def eager(*inputs: Any) -> Tensor:
    """Ours by PyTorch's operations."""
    with backend.use("eager"):
        return deformable_attention(*inputs)


ENGINES: dict[str, Callable[..., Tensor]] = {OURS: deformable_attention, EAGER: eager, THEIRS: by_transformers}


def inputs_of(study: str) -> Inputs:
    """Values, shapes, locations around each query's own cell, and weights that add up to 1."""
    torch.manual_seed(0)
    shapes = [(-(-SIZE[0] // stride), -(-SIZE[1] // stride)) for stride in STRIDES[study]]
    centers = []
    for height, width in shapes:
        y, x = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
        centers.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1))
    cells = sum(height * width for height, width in shapes)
    offsets = 2 * torch.randn(1, cells, HEADS, len(shapes), POINTS, 2)
    extents = torch.tensor([(width, height) for height, width in shapes])[:, None]
    locations = torch.cat(centers)[None, :, None, None, None] + offsets / extents
    weights = torch.randn(1, cells, HEADS, len(shapes) * POINTS).softmax(-1).view(locations.shape[:-1])
    return torch.randn(1, cells, HEADS, CHANNELS), shapes, locations, weights


def forward(attend: Callable[..., Tensor], inputs: Inputs) -> Callable[[], object]:
    return torch.no_grad()(lambda: attend(*inputs))


def training(attend: Callable[..., Tensor], inputs: Inputs) -> Callable[[], object]:
    values, shapes, locations, weights = inputs
    leaves = [x.detach().requires_grad_() for x in (values, locations, weights)]
    up = torch.randn(1, locations.shape[1], HEADS * CHANNELS)

    def step() -> None:
        out = attend(leaves[0], shapes, *leaves[1:])
        torch.autograd.grad(out, leaves, up)

    return step


def kept(attend: Callable[..., Tensor], inputs: Inputs) -> float:
    """What autograd keeps between forward and backward, GiB."""
    values, shapes, locations, weights = inputs
    leaves = [x.detach().requires_grad_() for x in (values, locations, weights)]
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = attend(leaves[0], shapes, *leaves[1:])
    del out
    return sum(storages.values()) / 2**30


def in_turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of every engine, once a round, in rotating order; a first round is not counted."""
    seconds: dict[str, list[float]] = {label: [] for label in calls}
    labels = list(calls)
    for i in range(rounds + 1):
        first = i % len(labels)
        for label in labels[first:] + labels[:first]:
            start = time.process_time()
            calls[label]()
            seconds[label].append(time.process_time() - start)
    return {label: times[1:] for label, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", choices=[*STRIDES, []], help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=studies.RESULTS / "deformable_cpu.json")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.peak:
        study, engine = a.peak
        return studies.print_peak(lambda: training(ENGINES[engine], inputs_of(study)))
    torch.set_num_threads(1)
    report: dict[str, Any] = {**studies.head(("torch", "transformers")), "cases": {}}
    for study in a.studies or STRIDES:
        inputs = inputs_of(study)
        case: dict[str, Any] = {"queries": inputs[2].shape[1], "seconds": {}, "times_ours": {}}
        for name, build in (("forward", forward), ("training step", training)):
            seconds = in_turns({label: build(attend, inputs) for label, attend in ENGINES.items()}, a.rounds)
            case["seconds"][name] = seconds
            case["times_ours"][name] = {
                label: statistics.median(x / ours for x, ours in zip(times, seconds[OURS], strict=True))
                for label, times in seconds.items()
            }
        case["kept_gib"] = {label: kept(attend, inputs) for label, attend in ENGINES.items()}
        case["peak_gib"] = studies.peaks(study, list(ENGINES))
        report["cases"][study] = case
        a.out.write_text(json.dumps(report, indent=1) + "\n")
        print(
            json.dumps({study: {key: value for key, value in case.items() if key != "seconds"}}, indent=1), flush=True
        )


if __name__ == "__main__":
    main()
