"""Accuracy and speed of int8 on the CPU kernels (``focalnet.optimize(model, int8=...)``), beside float32 and bfloat16.

    OMP_NUM_THREADS=1 python benchmarks/int8_cpu.py accuracy DATA/cifar10
    python benchmarks/int8_cpu.py metrics DATA/bccd --split test --model runs/detection/dino_bccd_nano/model.safetensors
    python benchmarks/int8_cpu.py speed --threads 1

``metrics`` is what ``focalnet.int8_from_data`` measures of any network on labeled data, in float32 and in int8, which
keeps layers in higher precision if it must. ``accuracy`` calibrates on training images and counts right classes of the
test images in all dtypes. ``speed`` times FocalNet-T at 224 x 224 with random weights, which do not change the speed:
all engines once per round, in rotating order; times are CPU seconds of the process divided by the threads. All write
their results to ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import focalnet
from focalnet.data import ClassificationData
from focalnet.data.preprocess import preprocess

RESULTS = Path(__file__).parent / "results"
HARDWARE = "2 cores of an AMD EPYC (fourth Zen generation)"
ENGINES: dict[str, dict[str, Any]] = {
    "float32": {},
    "int8 with bfloat16": {"int8": True, "dtype": torch.bfloat16},
    "bfloat16": {"dtype": torch.bfloat16},
    "int8 with float32": {"int8": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["accuracy", "metrics", "speed"])
    parser.add_argument("data", nargs="?")
    parser.add_argument("--model", default="focalnet_nano.cifar10")
    parser.add_argument("--split", default="val", choices=["val", "test"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--sensitivity", type=int, default=16)
    parser.add_argument("--name", help="of the results of metrics")
    parser.add_argument("--calibration", type=int, default=256)
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = {"accuracy": accuracy, "metrics": metrics, "speed": speed}[options.study](options)
    result |= {"hardware": HARDWARE, "torch": torch.__version__, "threads": options.threads}
    path = RESULTS / f"int8_cpu_{options.name or options.study}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


def accuracy(options: argparse.Namespace) -> dict[str, Any]:
    """Right classes of the test images in each dtype, and the table of layers."""
    calibration, evaluation = images_of(options)
    result: dict[str, Any] = {"model": options.model, "calibration": len(calibration), "right": {}, "layers": {}}
    result["images"] = sum(len(labels) for _, labels in evaluation)
    for name in options.engines:
        engine = ENGINES[name]
        model = focalnet.load(options.model)
        dtype = engine.get("dtype", torch.float32)
        start = time.process_time()
        done = focalnet.optimize(model, dtype=dtype, int8=calibration if engine.get("int8") else None)
        seconds = time.process_time() - start
        with torch.inference_mode():
            right = sum(int((model(x.to(dtype)).argmax(1) == y).sum()) for x, y in evaluation)
        result["right"][name] = right
        print(f"{name}: {right / result['images']:.2%} ({seconds:.0f} CPU seconds to optimize)\n{done}", flush=True)
        if done.quantization is not None:
            print(done.quantization)
            result["layers"][name] = [vars(layer) for layer in done.quantization.layers]
            result[f"{name}, CPU seconds to calibrate"] = round(seconds, 1)
    return result


def metrics(options: argparse.Namespace) -> dict[str, Any]:
    """Headline metrics before and after, and the table of layers; the defaults of ``int8_from_data`` limit the loss."""
    model = focalnet.load(options.model)
    int8 = focalnet.int8_from_data(
        model,
        options.data,
        split=options.split,
        calibration=options.calibration,
        sensitivity_images=options.sensitivity,
    )
    start = time.process_time()
    done = focalnet.optimize(model, dtype=getattr(torch, options.dtype), int8=int8)
    seconds = time.process_time() - start
    print(done, done.quantization, sep="\n")
    assert done.quantization is not None
    return {
        "model": model.card.name,
        "data": Path(options.data).name,
        "split": options.split,
        "calibration": options.calibration,
        "dtype": options.dtype,
        "metrics": done.quantization.metrics,
        "error": done.quantization.error,
        "kept": [layer.name for layer in done.quantization.kept],
        "layers": [vars(layer) for layer in done.quantization.layers],
        "cpu_seconds": round(seconds, 1),
    }


def images_of(options: argparse.Namespace) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Calibration images, evenly spaced in the training split, and batches of the test split with classes."""
    preprocessing = focalnet.load(options.model).card.preprocessing
    data = ClassificationData(root=options.data, val_split="test")
    data.setup("fit")
    train, test = data.samples["train"], data.samples["val"]

    def pixels(samples: Any, chosen: range) -> torch.Tensor:
        return torch.stack([preprocess(samples.read(i), preprocessing) for i in chosen])

    batches = []
    count = min(options.images, len(test))
    for first in range(0, count, 250):
        chosen = range(first, min(first + 250, count))
        batches.append((pixels(test, chosen), torch.tensor([int(test.source.labels[i]) for i in chosen])))
    step = len(train) // options.calibration
    return pixels(train, range(0, options.calibration * step, step)), batches


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """CPU milliseconds of each engine in each round, and how many times as fast int8 is."""
    result: dict[str, Any] = {"model": "focalnet_tiny_srf", "pixels": 224, "cpu_ms": {}, "ratios": {}}
    for batch in options.batches:
        calls = {}
        for name in options.engines:
            engine = ENGINES[name]
            torch.manual_seed(0)
            model, images = focalnet.create_model("focalnet_tiny_srf"), torch.randn(batch, 3, 224, 224)
            int8 = focalnet.Int8(images[:1], sensitivity_images=1) if engine.get("int8") else None
            dtype = engine.get("dtype", torch.float32)
            focalnet.optimize(model, dtype=dtype, int8=int8)
            calls[name] = (model, images.to(dtype))
        times: dict[str, list[float]] = {name: [] for name in calls}
        names = list(calls)
        with torch.inference_mode():
            for round_ in range(options.rounds + 2):
                for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
                    model, x = calls[name]
                    start = time.process_time()
                    model(x)
                    if round_ >= 2:  # the first rounds warm up
                        times[name].append(1000 * (time.process_time() - start) / options.threads)
        result["cpu_ms"][f"batch {batch}"] = {name: [round(t, 2) for t in values] for name, values in times.items()}
        for name, ours in times.items():
            print(f"batch {batch}, {name}: {min(ours):.1f} least, {statistics.median(ours):.1f} median CPU ms")
        for name in [name for name in names if name.startswith("int8")]:
            for other in [name for name in names if not name.startswith("int8")]:
                ratios = [a / b for a, b in zip(times[other], times[name], strict=True)]
                figures = {
                    "of least times": round(min(times[other]) / min(times[name]), 2),
                    "median of rounds": round(statistics.median(ratios), 2),
                }
                result["ratios"][f"batch {batch}, {name} against {other}"] = figures
                print(f"batch {batch}, {name} against {other}: {figures}")
    return result


if __name__ == "__main__":
    main()
