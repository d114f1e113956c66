"""Time of deletion, insertion and ROAD beside pytorch-grad-cam and Quantus, on the same model and maps.

    pip install grad-cam quantus
    OMP_NUM_THREADS=1 python benchmarks/explanations.py DATA/cifar10 --images 8

Each library does what it has: Quantus deletion (``PixelFlipping``), pytorch-grad-cam ROAD; insertion exists in neither,
and counts as a second ``PixelFlipping``, of the blurred image. Quantus orders values, not pixels, in steps that must
divide the number of pixels: it gets 128 of 3072 values, 24 steps, where ours are 32. Both are given all images as one
batch, which is the fastest way, and once more image by image. Times are CPU seconds of one thread, the libraries in
turns; the first turn warms up. The passes of the network alone, which all have in common, bound what any
implementation can reach; ``--ways`` times them after ``focalnet.optimize`` and in channels-last order, too. ``--ours``
leaves the other libraries out.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch

import focalnet
from focalnet.data import ClassificationData
from focalnet.data.preprocess import preprocess
from focalnet.explanations import measures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--model", default="focalnet_nano.cifar10")
    parser.add_argument("--ours", action="store_true")
    parser.add_argument("--ways", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = focalnet.load(options.model).eval()
    data = ClassificationData(root=options.data)
    data.setup("test")
    samples = data.samples["test"]
    pixels = torch.stack([preprocess(samples.read(i), model.card.preprocessing) for i in range(options.images)])
    with torch.inference_mode():
        labels = model(pixels).argmax(1)
    maps = torch.rand(pixels.shape[0], *pixels.shape[2:], generator=torch.Generator().manual_seed(0))
    count = passes(model, pixels, labels, maps)
    contenders = {
        "focalnet": lambda: ours(model, pixels, labels, maps),
        f"of it the network's {count // options.images} passes": lambda: alone(model, pixels, count),
    }
    if options.ways:
        optimized, last = copy.deepcopy(model), copy.deepcopy(model).to(memory_format=torch.channels_last)
        focalnet.optimize(optimized)
        contenders["the passes after focalnet.optimize"] = lambda: alone(optimized, pixels, count)
        contenders["the passes in channels-last order"] = lambda: alone(last, pixels, count)
    if not options.ours:
        contenders |= {
            "pytorch-grad-cam and Quantus, one batch": lambda: theirs(model, pixels, labels, maps),
            "pytorch-grad-cam and Quantus, image by image": lambda: [
                theirs(model, *(x[i : i + 1] for x in (pixels, labels, maps))) for i in range(len(pixels))
            ],
        }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(options.turns + 1):
        for name, run in contenders.items():
            start = time.process_time()
            run()
            if turn:
                seconds[name].append(time.process_time() - start)
    per_image = {name: min(times) / options.images for name, times in seconds.items()}
    first = per_image["focalnet"]
    for name, value in per_image.items():
        print(f"{name:46} {value:7.3f} s an image, {value / first:5.2f} times ours")
    if options.out:
        result = {"model": options.model, "images": options.images, "cpu_seconds_per_image": per_image, "all": seconds}
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def passes(model: Any, pixels: torch.Tensor, labels: torch.Tensor, maps: torch.Tensor) -> int:
    """How many images go through the network in ``ours``."""
    counted = []
    hook = model.register_forward_pre_hook(lambda _, inputs: counted.append(len(inputs[0])))
    ours(model, pixels, labels, maps)
    hook.remove()
    return sum(counted)


def alone(model: Any, pixels: torch.Tensor, count: int) -> None:
    """So many images through the network, in batches as large as those of the measures."""
    versions = pixels[torch.arange(count) % len(pixels)]
    with torch.inference_mode():
        for some in torch.split(versions, measures.AT_ONCE):
            model(some)


def ours(model: Any, pixels: torch.Tensor, labels: torch.Tensor, maps: torch.Tensor) -> None:
    def probability(versions: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return model(versions).softmax(1).gather(1, labels[index][:, None])[:, 0]

    with torch.inference_mode():
        measures.deletion(probability, pixels, maps)
        measures.insertion(probability, pixels, maps)
        measures.road(probability, pixels, maps)


def theirs(model: Any, pixels: torch.Tensor, labels: torch.Tensor, maps: torch.Tensor) -> None:
    import quantus
    from pytorch_grad_cam.metrics.road import ROADCombined
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    step = 4 * pixels.shape[3]
    flipping = quantus.PixelFlipping(
        features_in_step=step, perturb_baseline=0.0, disable_warnings=True, display_progressbar=False
    )
    for images in (pixels, measures.blurred(pixels)):
        flipping(
            model=model, x_batch=images.numpy(), y_batch=labels.numpy(), a_batch=maps.numpy()[:, None], softmax=True
        )
    targets = [ClassifierOutputSoftmaxTarget(int(label)) for label in labels]
    ROADCombined()(pixels, maps.numpy(), targets, model)


if __name__ == "__main__":
    main()
