"""Measures UPerNet and Mask2Former on the CPU against transformers' own, in turns inside one run.

    python benchmarks/segmentation.py [--rounds 5] [--side 512] [--out results.json]

UPerNet: the same network (FocalNet-T LRF as published, kernels from 9) here and as transformers' UPerNet over timm's
FocalNet, and transformers' UPerNet over Swin-T. Mask2Former: over FocalNet-T here, over Swin-T there. In training, both
sides compute the auxiliary head and every loss. Everything has random weights: they do not change the speed.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peers
import torch
from torch import Tensor, nn
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
    TimmBackbone,
    TimmBackboneConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

import focalnet
from focalnet.inference.timing import Timing, in_turns
from focalnet.losses.segmentation import criterion
from focalnet.ops.memory import keep_freed_memory

RESULTS = Path(__file__).parent / "results"
UPERNET_CLASSES, MASK2FORMER_CLASSES, SEGMENTS = 150, 133, 12  # as in ADE20K and COCO; segments of an image
Call = Callable[[], object]
Engines = dict[str, Callable[[], Call]]  # how each is built
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def upernet_inference(side: int) -> Engines:
    """One image to logits of its size."""
    image = torch.randn(1, 3, side, side)
    return {
        "focalnet": lambda: _scores(_ours("upernet"), image),
        "focalnet, optimized": lambda: _scores(_optimized(_ours("upernet")), image),
        "transformers, timm's FocalNet-T": lambda: _logits(_their_upernet("timm"), image),
        "transformers, Swin-T": lambda: _logits(_their_upernet("swin"), image),
    }


def upernet_training(side: int) -> Engines:
    """Forward, losses of both heads, backward; two images."""
    images, labels = torch.randn(2, 3, side, side), torch.randint(UPERNET_CLASSES, (2, side, side))
    given = {"pixel_values": images, "labels": labels}
    return {
        "focalnet": lambda: _our_step(_ours("upernet"), images, labels),
        "transformers, timm's FocalNet-T": lambda: _their_step(_their_upernet("timm"), given),
        "transformers, Swin-T": lambda: _their_step(_their_upernet("swin"), given),
    }


def mask2former_training(side: int) -> Engines:
    """Forward, matching and losses of all layers, backward; one image with a dozen segments."""
    image = torch.randn(1, 3, side, side)
    labels, masks = torch.randint(MASK2FORMER_CLASSES, (SEGMENTS,)), torch.zeros(SEGMENTS, side, side, dtype=torch.bool)
    edges = torch.linspace(0, side, SEGMENTS + 1).long().tolist()
    for mask, top, bottom in zip(masks, edges[:-1], edges[1:], strict=True):
        mask[top:bottom] = True
    given = {"pixel_values": image, "mask_labels": [masks.float()], "class_labels": [labels]}
    config = Mask2FormerConfig(backbone_config=_swin(), num_labels=MASK2FORMER_CLASSES)
    return {
        "focalnet": lambda: _our_step(_ours("mask2former"), image, [{"labels": labels, "masks": masks}]),
        "transformers, Swin-T": lambda: _their_step(Mask2FormerForUniversalSegmentation(config), given),
    }


STUDIES = {f.__name__: f for f in (upernet_inference, upernet_training, mask2former_training)}


def _ours(method: str) -> nn.Module:
    classes = UPERNET_CLASSES if method == "upernet" else MASK2FORMER_CLASSES
    return focalnet.create_model(f"{method}_focalnet_tiny_lrf", num_classes=classes)


def _optimized(model: nn.Module) -> nn.Module:
    focalnet.optimize(model)
    return model


def _swin() -> SwinConfig:
    return SwinConfig(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7, out_features=STAGES)


def _their_upernet(backbone: str) -> nn.Module:
    timm = TimmBackboneConfig(backbone="focalnet_tiny_lrf", out_indices=(0, 1, 2, 3))
    config = UperNetConfig(
        backbone_config=timm if backbone == "timm" else _swin(), num_labels=UPERNET_CLASSES, hidden_size=512
    )
    model = UperNetForSemanticSegmentation(config)
    if backbone == "timm":  # with the kernels of the published segmenter, which the configuration cannot say
        model.backbone = TimmBackbone(timm, focal_windows=(9, 9, 9, 9))
    return model


def _scores(model: nn.Module, image: Tensor) -> Call:
    seen = image.contiguous(memory_format=torch.channels_last)
    model.eval()

    def call() -> None:
        with torch.inference_mode():
            model.class_scores(seen)  # type: ignore[operator]

    return call


def _logits(model: nn.Module, image: Tensor) -> Call:
    model.eval()

    def call() -> None:
        with torch.inference_mode():
            model(pixel_values=image)

    return call


def _our_step(model: nn.Module, images: Tensor, targets: Any) -> Call:
    loss_of = criterion(model.config)  # type: ignore[arg-type]
    seen = images.contiguous(memory_format=torch.channels_last)
    model.train()

    def step() -> None:
        model.zero_grad(set_to_none=True)
        losses = loss_of(model.training_outputs(seen), targets)  # type: ignore[operator]
        torch.stack([value for name, value in losses.items() if "loss" in name]).sum().backward()

    return step


def _their_step(model: nn.Module, given: dict[str, Any]) -> Call:
    model.train()

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(**given).loss.backward()

    return step


def peaks(study: str, side: int, engines: list[str]) -> dict[str, float]:
    """The most memory of a process that builds one engine and makes two steps, GiB, beyond what its imports took."""
    command = [sys.executable, __file__, "--side", str(side), "--peak", study]
    return {name: float(subprocess.check_output([*command, name], text=True).split()[-1]) for name in engines}


def print_peak(study: str, engine: str, side: int) -> None:
    """Measures this process."""
    before = _peak()
    step = STUDIES[study](side)[engine]()
    for _ in range(2):
        step()
    print((_peak() - before) / 2**20)


def _peak() -> int:
    """The most memory that this program had, KiB. getrusage's figure counts the one that started it, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def lines(study: str, timings: dict[str, Timing], memory: dict[str, float]) -> Iterator[str]:
    """The table, each engine with its time over ours."""
    ours = timings["focalnet"].median
    for name, timing in timings.items():
        low, high = timing.quartiles
        spread = f"{1e3 * timing.median:8.0f} ms  ({1e3 * low:.0f} to {1e3 * high:.0f})  {timing.median / ours:5.2f}x"
        yield f"{study:22s} {name:34s} {spread}" + (f"  {memory[name]:6.2f} GiB" if name in memory else "")


def main() -> None:
    """Measures every study; writes the file after each, so that an interruption loses only the current one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--out", type=Path, default=RESULTS / "segmentation_cpu.json")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print_peak(*arguments.peak, arguments.side)
        return
    report: dict[str, Any] = {
        "command": f"python benchmarks/segmentation.py --rounds {arguments.rounds} --side {arguments.side}",
        "date": datetime.date.today().isoformat(),
        "hardware": f"{peers.processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "versions": {p: importlib.metadata.version(p) for p in ("torch", "timm", "transformers")}
        | {"focalnet": focalnet.__version__},
        "studies": {name: study.__doc__ for name, study in STUDIES.items()},
        "seconds": {},
        "times_ours": {},
        "peak_gib": {},
    }
    keep_freed_memory()  # for every engine alike
    for study, build in STUDIES.items():
        engines = build(arguments.side)
        timings = in_turns({name: make() for name, make in engines.items()}, arguments.rounds, warmup=1)
        memory = peaks(study, arguments.side, list(engines)) if study.endswith("training") else {}
        report["seconds"][study] = {name: timing.seconds for name, timing in timings.items()}
        report["times_ours"][study] = {n: t.median / timings["focalnet"].median for n, t in timings.items()}
        report["peak_gib"][study] = memory
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
        print("\n".join(lines(study, timings, memory)), flush=True)


if __name__ == "__main__":
    main()
