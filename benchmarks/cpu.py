"""Compares the speed of FocalNet-T on the CPU with other libraries, engines and networks, interleaved in one run.

    python benchmarks/cpu.py [inference] [training] [detection] [size] [--rounds 15] [--dtypes float32] [--tag intel]

Every study times each engine once per round, in rotating order, and writes all times to ``benchmarks/results``;
``benchmarks/show.py`` makes tables and figures of them. Weights are random, since speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from multiprocessing import get_context
from typing import Any

import peers
import studies
import timm
import torch
import torch.nn.functional as F
from torch import nn

import focalnet
from focalnet.cli.benchmark import Timing, in_turns
from focalnet.kernels.memory import keep_freed_memory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FLOOR = "its matrix products alone"
Engines = dict[str, Callable[[], object]]
Case = Callable[[], tuple[Engines, dict[str, Any]]]  # builds the engines, and gives further facts for the report


def inference(dtypes: Sequence[str]) -> dict[str, Case]:
    """224 x 224, batch 1 and 8: every engine, and Swin-T and ConvNeXt-T of timm in their best setting."""

    def build(dtype: torch.dtype, batch: int) -> tuple[Engines, dict[str, Any]]:
        images = torch.randn(batch, 3, 224, 224, dtype=dtype)
        calls: dict[str, peers.Call] = {
            "official order": _ready(peers.official_order("srf"), dtype),
            "timm": _ready(peers.of_timm("srf"), dtype),
            "timm, compiled": peers.compiled(_ready(peers.of_timm("srf"), dtype)),
            "focalnet": _ready(peers.ours("srf"), dtype),
            "focalnet, optimized": peers.optimized(peers.ours("srf"), dtype),
            "focalnet, optimized, compiled": peers.compiled(peers.optimized(peers.ours("srf"), dtype)),
            "Swin-T, compiled": peers.compiled(_ready(timm.create_model("swin_tiny_patch4_window7_224"), dtype)),
            "ConvNeXt-T, compiled": peers.compiled(_ready(timm.create_model("convnext_tiny"), dtype)),
            **peers.runtimes(images),
            FLOOR: peers.matrix_products(_bound(peers.optimized(peers.ours("srf"), dtype), images), dtype),
        }
        return {label: _bound(call, images) for label, call in calls.items()}, {}

    return {f"{name}, batch {batch}": partial(build, DTYPES[name], batch) for name in dtypes for batch in (1, 8)}


def detection(dtypes: Sequence[str]) -> dict[str, Case]:
    """One image of 800 x 1216 through the backbone with kernels 9, 11, 13, as in detectors."""

    def build(dtype: torch.dtype) -> tuple[Engines, dict[str, Any]]:
        images = torch.randn(1, 3, 800, 1216, dtype=dtype)
        models = {
            "official order": _ready(peers.official_order("detection"), dtype),
            "timm": _ready(peers.of_timm("detection"), dtype),
            "focalnet": _ready(peers.ours("detection"), dtype),
            "focalnet, optimized": peers.optimized(peers.ours("detection"), dtype),
        }
        calls: dict[str, peers.Call] = {**models}
        calls[FLOOR] = peers.matrix_products(_bound(models["focalnet, optimized"], images), dtype)
        return {label: _bound(call, images) for label, call in calls.items()}, {}

    return {name: partial(build, DTYPES[name]) for name in dtypes}


def size(dtypes: Sequence[str]) -> dict[str, Case]:
    """One image of 224 to 1024 pixels, of the last dtype: what a network costs as images grow."""
    dtype = DTYPES[dtypes[-1]]

    def build(side: int) -> tuple[Engines, dict[str, Any]]:
        images = torch.randn(1, 3, side, side, dtype=dtype)
        models = {
            "official order": _ready(peers.official_order("srf"), dtype),
            "focalnet, optimized": peers.optimized(peers.ours("srf"), dtype),
            "ConvNeXt-T": _ready(timm.create_model("convnext_tiny"), dtype),
            "ViT-S/16": _ready(timm.create_model("vit_small_patch16_224", img_size=side), dtype),
        }
        if side % 224 == 0 or side % 128 == 0:  # Swin's windows must tile the map
            window = 7 if side % 224 == 0 else 8
            swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=side, window_size=window)
            models["Swin-T"] = _ready(swin, dtype)
        return {label: _bound(model, images) for label, model in models.items()}, {}

    return {str(side): partial(build, side) for side in (224, 384, 512, 768, 1024)}


def training(dtypes: Sequence[str]) -> dict[str, Case]:
    """A step (forward, loss, backward) of batch 16, also under bfloat16 autocast, and the memory it keeps."""

    def build(dtype: torch.dtype, kind: str) -> tuple[Engines, dict[str, Any]]:
        images, labels = torch.randn(16, 3, 224, 224), torch.randint(1000, (16,))
        saving = peers.ours(kind)
        focalnet.optimize(saving, for_="training", save_memory=True)
        models = {
            "official order": peers.official_order(kind),
            "timm": peers.of_timm(kind),
            "focalnet": peers.ours(kind),
            "focalnet, save_memory": saving,
            "Swin-T": timm.create_model("swin_tiny_patch4_window7_224"),
        }
        steps = {label: _step(model.train(), images, labels, dtype) for label, model in models.items()}
        saved = {label: _saved_mib(model, images, labels, dtype) for label, model in models.items()}
        products = peers.matrix_products(steps["focalnet"], dtype)
        steps[FLOOR] = _bound(products, images)
        steps["timm, compiled"] = _step(peers.compiled(peers.of_timm(kind).train()), images, labels, dtype)
        return steps, {"saved_mib": saved}

    def title(name: str, kind: str) -> str:
        return f"{name}{' autocast' * (name == 'bfloat16')}, batch 16, {kind}"

    return {title(name, kind): partial(build, DTYPES[name], kind) for name in dtypes for kind in ("srf", "lrf")}


def _ready(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return model.eval().to(dtype)


def _bound(call: peers.Call, images: torch.Tensor) -> Callable[[], object]:
    return lambda: call(images)


def _step(model: peers.Call, images: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype) -> Callable[[], object]:
    def step() -> None:
        with _precision(dtype):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()

    return step


def _precision(dtype: torch.dtype) -> AbstractContextManager[object]:
    return torch.autocast("cpu", dtype) if dtype == torch.bfloat16 else nullcontext()


def _saved_mib(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype) -> float:
    """What autograd keeps between forward and backward besides the parameters, each storage once."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), _precision(dtype):
        loss = F.cross_entropy(model(images), labels)
    del loss
    return sum(storages.values()) / 2**20


STUDIES = {"inference": inference, "training": training, "detection": detection, "size": size}


def run(study: str, rounds: int, dtypes: Sequence[str], tag: str | None) -> None:
    """Measures one study and writes its file after every case, so that an interruption loses only the current one."""
    report: dict[str, Any] = {
        "study": STUDIES[study].__doc__,
        **studies.head(("torch", "timm", "transformers")),
        "copy_gb_per_s": round(peers.copy_bandwidth(), 1),
        "seconds": {},
        "more": {},
    }
    path = studies.RESULTS / f"cpu_{study}{f'_{tag}' if tag else ''}.json"
    for name in STUDIES[study](dtypes):
        # Each in a process of its own: freed memory is kept for the next tensors, and would add up.
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            timings, more = process.submit(measure, study, name, rounds, dtypes).result()
        report["seconds"][name] = {label: timing.seconds for label, timing in timings.items()}
        report["more"][name] = more
        path.write_text(json.dumps(report, indent=1) + "\n")
        for label, timing in timings.items():
            low, high = timing.quartiles
            print(
                f"{name:34s} {label:30s} {1e3 * timing.median:9.1f} ms  ({1e3 * low:.1f} to {1e3 * high:.1f})",
                flush=True,
            )


def measure(study: str, name: str, rounds: int, dtypes: Sequence[str]) -> tuple[dict[str, Timing], dict[str, Any]]:
    """Times one case."""
    keep_freed_memory()  # for every engine alike
    with torch.set_grad_enabled(study == "training"):
        calls, more = STUDIES[study](dtypes)[name]()
        return in_turns(calls, rounds), more


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", choices=[*STUDIES, []], help="studies to run; default: all")
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of each engine; default: %(default)s")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="data types; default: both")
    parser.add_argument("--tag", help="suffix of the result files, to keep those of another machine")
    arguments = parser.parse_args()
    for study in arguments.studies or STUDIES:
        run(study, arguments.rounds, arguments.dtypes, arguments.tag)


if __name__ == "__main__":
    main()
