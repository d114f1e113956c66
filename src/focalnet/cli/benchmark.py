"""``focalnet benchmark``: times a model on this machine."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

import focalnet
from focalnet.cli.formats import compare_formats
from focalnet.cli.terminal import say
from focalnet.errors import ConfigError, UnknownName, did_you_mean
from focalnet.files import write

if TYPE_CHECKING:
    import torch
    from torch import nn

DTYPES = ("float32", "bfloat16", "float16")


def benchmark(
    model: Annotated[str, typer.Argument(help='An architecture or checkpoint; "focalnet models" lists them.')] = (
        "focalnet_tiny_srf"
    ),
    batch: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 1,
    size: Annotated[int | None, typer.Option(min=1, help="Side of the images in pixels; default: the model's.")] = None,
    dtype: Annotated[str, typer.Option(help=f"Data type: {', '.join(DTYPES)}.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: a GPU if there is one.")] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Also time torch.compile, which takes a while.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Timed calls of each variant.")] = 20,
    out: Annotated[Path | None, typer.Option(help="Write all times to this JSON file.")] = None,
    formats: Annotated[
        bool, typer.Option("--formats", help="Compare PyTorch with every exported format, from image file to result.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            help="With --formats: a labeled data set as for training, or the config.yaml of a run, to measure "
            "accuracy on."
        ),
    ] = None,
    split: Annotated[Literal["val", "test"], typer.Option(help="With --data: the images to measure on.")] = "val",
    file: Annotated[
        list[Path] | None,
        typer.Option(help="With --formats: also compare this exported file of the model, e.g. in int8; repeatable."),
    ] = None,
) -> None:
    """Times a model on this machine.

    Compares plain PyTorch operations, the library's kernels, the optimized and the compiled model. With --formats,
    compares file size, accuracy, time and memory of the model in every format.
    """
    if formats:
        if (batch, size, dtype, device) != (1, None, "float32", None):
            raise ConfigError(
                "--formats reads single images, on the CPU, in float32: leave out --batch, --size, --dtype and --device"
            )
        compare_formats(model, data=data, split=split, files=file or (), compiled=compiled, rounds=rounds, out=out)
        return
    if data is not None or file or split != "val":
        raise ConfigError("--data, --split and --file are options of --formats")
    import torch

    from focalnet import zoo
    from focalnet.inference.predictor import pick_device
    from focalnet.models.variants import VARIANTS

    if dtype not in DTYPES:
        raise ConfigError(f'no dtype "{dtype}"{did_you_mean(dtype, DTYPES)}; choose one of {", ".join(DTYPES)}')
    target = pick_device(device)
    architecture = model.partition(".")[0]
    if architecture not in VARIANTS:
        raise UnknownName(
            f'no architecture "{architecture}"{did_you_mean(architecture, VARIANTS)}; "focalnet models" lists all'
        )
    side = size or VARIANTS[architecture].image_size or 224
    images = torch.rand(batch, 3, side, side, device=target, dtype=getattr(torch, dtype))

    def build() -> nn.Module:
        return zoo.create_model(architecture).to(images).eval()

    with torch.inference_mode():
        timings = in_turns(_candidates(images, build, compiled=compiled), rounds)
    threads = f", {torch.get_num_threads()} threads" if target.type == "cpu" else ""
    say(f"{model}, {dtype}, {batch} x 3 x {images.shape[2]} x {images.shape[3]}, {target}{threads}")
    plain = timings["eager"].median
    for name, timing in timings.items():
        low, high = (1e3 * second for second in timing.quartiles)
        speed, ratio = batch / timing.median, plain / timing.median
        say(f"  {name:10s} {1e3 * timing.median:9.2f} ms  ({low:.2f} to {high:.2f})  {speed:9.1f} img/s  {ratio:5.2f}x")
    if out is not None:
        setting = {"model": model, "dtype": dtype, "input": list(images.shape), "device": str(target)}
        seconds = {name: timing.seconds for name, timing in timings.items()}
        versions = {"focalnet": focalnet.__version__, "torch": torch.__version__, "threads": torch.get_num_threads()}
        write(out, json.dumps(setting | versions | {"seconds": seconds}, indent=1).encode(), ConfigError)


def _candidates(
    images: torch.Tensor, build: Callable[[], nn.Module], *, compiled: bool
) -> dict[str, Callable[[], object]]:
    """One function per variant, by name. The weights are random, since speed does not depend on them."""
    import torch

    from focalnet.kernels import backend
    from focalnet.kernels.optimize import optimize

    plain, optimized = build(), build()
    optimize(optimized, dtype=images.dtype)

    def eager() -> object:
        with backend.use("eager"):
            return plain(images)

    candidates: dict[str, Callable[[], object]] = {
        "eager": eager,
        "kernels": lambda: plain(images),
        "optimized": lambda: optimized(images),
    }
    if compiled:
        graph = torch.compile(optimized, fullgraph=True)
        candidates["compiled"] = lambda: graph(images)
    return candidates


@dataclass(frozen=True)
class Timing:
    """Seconds of every round, in order."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high


def in_turns(candidates: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2) -> dict[str, Timing]:
    """Times every candidate once a round, in rotating order, so that a slow moment of the machine affects all of them.

    Args:
        candidates: functions to call, by name.
        rounds: timed calls of each.
        warmup: untimed calls of each before the first round, which compile and fill caches.
    """
    for call in candidates.values():
        for _ in range(warmup):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            seconds[name].append(_time(candidates[name]))
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def _time(call: Callable[[], object]) -> float:
    _wait()
    start = time.perf_counter()
    call()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
