"""Profiles FocalNet-T in several engines, by type of operation.

    python benchmarks/cpu_profile.py [inference] [training] [detection] [--rounds 20] [--dtypes float32] [--tag intel]

Inference is a forward pass of batch 8, training a step (forward, loss, backward) of batch 16, both 224 x 224;
detection is one image of 800 x 1216 through the backbone with kernels 9, 11, 13. Runs of the engines are interleaved;
tables show medians. PyTorch's profiler adds up the self time of each operation; the rest of the elapsed time is Python,
dispatch, waiting and the profiler. Writes ``benchmarks/results/cpu_*_profile.json``, from which ``show.py`` makes
tables.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import peers
import studies
import torch
import torch._inductor.config
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from focalnet.kernels import cpu
from focalnet.kernels.memory import keep_freed_memory

SHAPE = {"inference": (8, 3, 224, 224), "training": (16, 3, 224, 224), "detection": (1, 3, 800, 1216)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KINDS = (
    "matrix products",
    "stem and down-sampling",
    "depthwise convolutions, GELU, gates",
    "layer norms, with sums where fused",
    "other sums, products, copies",
    "Python, dispatch, profiler",
)
Engine = Callable[[torch.Tensor], object]


def kind(name: str, shapes: list[list[int]]) -> str | None:
    """What an operation of the profiler is for; None for one that only calls others.

    Without gradients the MLP's GELU counts as a part of its product, also where it is a pass of ours after it.
    """
    products, patches, context, norms, other, _ = KINDS
    if name.startswith("ours: "):  # see _mark_kernels
        if name.endswith(" gelu_"):
            return products
        return norms if "norm" in name else other if "sum" in name else context
    if "convolution" in name and len(maps := [shape for shape in shapes if len(shape) == 4]) > 1:
        _, inputs, height, _ = maps[-1]  # the weight; before it the input, and what is added where that is fused
        return products if height == 1 else context if inputs == 1 else patches
    if "gelu" in name:
        return context
    if "linear" in name.partition("::")[2] or name in ("aten::mm", "aten::addmm"):
        return products if name.startswith(("mkldnn::", "mkl::", "aten::")) else None
    if "layer_norm" in name:
        return norms
    return other if name.startswith(("aten::", "graph_")) else None


def parts(call: Engine, images: torch.Tensor) -> dict[str, float]:
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


def in_turns(calls: dict[str, Engine], images: torch.Tensor, rounds: int) -> dict[str, dict[str, float]]:
    """The parts of each engine, one call a round; medians of every part."""
    for call in [*calls.values()] * 3:
        call(images)
    found: dict[str, list[dict[str, float]]] = {label: [] for label in calls}
    for _ in range(rounds):
        for label, call in calls.items():
            found[label].append(parts(call, images))
    return {label: {k: statistics.median(one[k] for one in of) for k in KINDS} for label, of in found.items()}


def inference(dtype: torch.dtype) -> dict[str, Engine]:
    """Each ready to be called."""
    return {
        "official order": peers.official_order("srf").eval().to(dtype),
        "timm, compiled": peers.compiled(peers.of_timm("srf").eval().to(dtype)),
        "focalnet, optimized": peers.optimized(peers.ours("srf"), dtype),
        "focalnet, optimized, compiled": peers.compiled(peers.optimized(peers.ours("srf"), dtype)),
    }


def training(dtype: torch.dtype) -> dict[str, Engine]:
    """A step of each; bfloat16 is autocast."""

    def step(model: nn.Module) -> Engine:
        def call(images: torch.Tensor) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = F.cross_entropy(model(images.float()), labels)
            loss.backward()

        return call

    labels = torch.randint(1000, SHAPE["training"][:1])
    models = {
        "official order": peers.official_order("srf"),
        "timm": peers.of_timm("srf"),
        "focalnet": peers.ours("srf"),
    }
    return {label: step(model.train()) for label, model in models.items()}


def detection(dtype: torch.dtype) -> dict[str, Engine]:
    """Each ready to be called."""
    return {
        "official order": peers.official_order("detection").eval().to(dtype),
        "timm": peers.of_timm("detection").eval().to(dtype),
        "focalnet, optimized": peers.optimized(peers.ours("detection"), dtype),
    }


STUDIES = {"inference": inference, "training": training, "detection": detection}


def _mark_kernels() -> None:
    """Lets the profiler see the kernels that are called past PyTorch."""
    for name in ("forward", "backward", "layer_norm", "layer_norm_backward", "gelu_", "gelu_backward", "column_sum"):
        setattr(cpu.Library, name, _marked(f"ours: {name}", getattr(cpu.Library, name)))


def _marked(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return kernel(*args, **kwargs)

    return call


def run(study: str, rounds: int, dtypes: Sequence[str], tag: str | None) -> None:
    """Profiles the engines of one study."""
    report: dict[str, Any] = {**studies.head(("torch", "timm", "transformers")), "profile": {}}
    with torch.set_grad_enabled(study == "training"):
        for name in dtypes:
            images = torch.randn(SHAPE[study], dtype=DTYPES[name])
            report["profile"][name] = in_turns(STUDIES[study](DTYPES[name]), images, rounds)
            for label, found in report["profile"][name].items():
                print(name, label, {part: round(1e3 * s, 1) for part, s in found.items()}, flush=True)
            torch._dynamo.reset()
    path = studies.RESULTS / f"cpu_{study}{f'_{tag}' if tag else ''}_profile.json"
    path.write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", choices=[*STUDIES, []], help="studies to run; default: all")
    parser.add_argument("--rounds", type=int, default=20, help="profiled calls of each engine; default: %(default)s")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="data types; default: both")
    parser.add_argument("--tag", help="suffix of the result files, to keep those of another machine")
    arguments = parser.parse_args()
    keep_freed_memory()
    _mark_kernels()
    torch._inductor.config.cpp.enable_kernel_profile = True
    for study in arguments.studies or STUDIES:
        run(study, arguments.rounds, arguments.dtypes, arguments.tag)


if __name__ == "__main__":
    main()
