"""Measures FocalNet-T on the CPU against the same network elsewhere and its rivals, in turns inside one run.

    python benchmarks/cpu.py [inference] [training] [detection] [size] [--rounds 15]

Every study times each engine once a round in rotating order, and writes all times to ``benchmarks/results``;
``benchmarks/show.py`` makes tables and pictures of them. Everything has random weights: they do not change the speed.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peers
import timm
import torch
import torch.nn.functional as F
from torch import nn

import focalnet
from focalnet.inference.timing import in_turns
from focalnet.ops.memory import keep_freed_memory

RESULTS = Path(__file__).parent / "results"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FLOOR = "its matrix products alone"
Case = tuple[str, dict[str, Callable[[], object]], dict[str, Any]]


def inference() -> Iterator[Case]:
    """224 x 224, batch 1 and 8: every engine, and Swin-T and ConvNeXt-T of timm in their best setting."""
    for name, dtype in DTYPES.items():
        for batch in (1, 8):
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
            yield f"{name}, batch {batch}", {label: _bound(call, images) for label, call in calls.items()}, {}


def detection() -> Iterator[Case]:
    """One image of 800 x 1216 through the trunk with kernels 9, 11, 13, as detectors have it."""
    for name, dtype in DTYPES.items():
        images = torch.randn(1, 3, 800, 1216, dtype=dtype)
        models = {
            "official order": _ready(peers.official_order("detection"), dtype),
            "timm": _ready(peers.of_timm("detection"), dtype),
            "focalnet": _ready(peers.ours("detection"), dtype),
            "focalnet, optimized": peers.optimized(peers.ours("detection"), dtype),
        }
        calls: dict[str, peers.Call] = {**models}
        calls[FLOOR] = peers.matrix_products(_bound(models["focalnet, optimized"], images), dtype)
        yield name, {label: _bound(call, images) for label, call in calls.items()}, {}


def size() -> Iterator[Case]:
    """One bfloat16 image of 224 to 1024 pixels: what a network costs as images grow."""
    for side in (224, 384, 512, 768, 1024):
        images = torch.randn(1, 3, side, side, dtype=torch.bfloat16)
        models = {
            "official order": _ready(peers.official_order("srf"), torch.bfloat16),
            "focalnet, optimized": peers.optimized(peers.ours("srf"), torch.bfloat16),
            "ConvNeXt-T": _ready(timm.create_model("convnext_tiny"), torch.bfloat16),
            "ViT-S/16": _ready(timm.create_model("vit_small_patch16_224", img_size=side), torch.bfloat16),
        }
        if side % 224 == 0 or side % 128 == 0:  # Swin's windows must tile the map
            window = 7 if side % 224 == 0 else 8
            swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=side, window_size=window)
            models["Swin-T"] = _ready(swin, torch.bfloat16)
        yield str(side), {label: _bound(model, images) for label, model in models.items()}, {}


def training() -> Iterator[Case]:
    """A step (forward, loss, backward) of batch 16 under bfloat16 autocast, and the memory it keeps for backward."""
    images, labels = torch.randn(16, 3, 224, 224), torch.randint(1000, (16,))
    for kind in ("srf", "lrf"):
        saving = peers.ours(kind)
        focalnet.optimize(saving, for_="training", save_memory=True)
        models = {
            "official order": peers.official_order(kind),
            "timm": peers.of_timm(kind),
            "focalnet": peers.ours(kind),
            "focalnet, save_memory": saving,
            "Swin-T": timm.create_model("swin_tiny_patch4_window7_224"),
        }
        steps = {label: _step(model.train(), images, labels) for label, model in models.items()}
        saved = {label: _saved_mib(model, images, labels) for label, model in models.items()}
        products = peers.matrix_products(_step(models["focalnet"], images, labels), torch.bfloat16)
        steps[FLOOR] = _bound(products, images)
        steps["timm, compiled"] = _step(peers.compiled(peers.of_timm(kind).train()), images, labels)
        yield f"bfloat16 autocast, batch 16, {kind}", steps, {"saved_mib": saved}


def _ready(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return model.eval().to(dtype)


def _bound(call: peers.Call, images: torch.Tensor) -> Callable[[], object]:
    return lambda: call(images)


def _step(model: peers.Call, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], object]:
    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()

    return step


def _saved_mib(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """What autograd keeps between forward and backward besides the parameters, each storage once."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(model(images), labels)
    del loss
    return sum(storages.values()) / 2**20


STUDIES = {"inference": inference, "training": training, "detection": detection, "size": size}


def run(study: str, rounds: int) -> None:
    """Measures one study and writes its file after every case, so that an interruption loses only the current one."""
    report: dict[str, Any] = {
        "study": STUDIES[study].__doc__,
        "command": f"python benchmarks/cpu.py {study} --rounds {rounds}",
        "date": datetime.date.today().isoformat(),
        "hardware": f"{peers.processor()}, {torch.get_num_threads()} threads",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "versions": {
            "focalnet": focalnet.__version__,
            **{p: importlib.metadata.version(p) for p in ("torch", "timm", "transformers")},
        },
        "copy_gb_per_s": round(peers.copy_bandwidth(), 1),
        "seconds": {},
        "more": {},
    }
    with torch.set_grad_enabled(study == "training"):
        for name, calls, more in STUDIES[study]():
            timings = in_turns(calls, rounds)
            report["seconds"][name] = {label: timing.seconds for label, timing in timings.items()}
            report["more"][name] = more
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / f"cpu_{study}.json").write_text(json.dumps(report, indent=1) + "\n")
            for label, timing in timings.items():
                low, high = timing.quartiles
                print(f"{name:34s} {label:22s} {1e3 * timing.median:9.1f} ms  ({1e3 * low:.1f} to {1e3 * high:.1f})")
            torch._dynamo.reset()


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", choices=[*STUDIES, []], help="default: all")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    keep_freed_memory()  # for every engine alike
    for study in arguments.studies or STUDIES:
        run(study, arguments.rounds)


if __name__ == "__main__":
    main()
