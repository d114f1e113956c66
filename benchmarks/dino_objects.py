"""Memory of a training step of DINO against the number of objects in the image.

    python benchmarks/dino_objects.py                                            # COCO's size, FocalNet-T
    python benchmarks/dino_objects.py --architecture dino_focalnet_nano --size 128 192

Every number of objects has a process of its own, which makes one step: forward and backward. What is measured is the
highest resident memory above that of the model alone (Linux).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import torch

from focalnet import create_model
from focalnet.samples import Batch, ImageInfo, ObjectTarget


def batch(objects: int, height: int, width: int) -> Batch[ObjectTarget]:
    """One image of noise with so many objects of one to ten percent of its sides."""
    random = torch.Generator().manual_seed(0)
    sides = torch.tensor([width, height], dtype=torch.float32)
    low = torch.rand(objects, 2, generator=random) * 0.9
    size = 0.01 + 0.09 * torch.rand(objects, 2, generator=random)
    boxes = torch.cat([low, low + size], 1) * sides.repeat(2)
    labels = torch.randint(80, (objects,), generator=random)
    target = ObjectTarget(boxes=boxes, labels=labels, masks=None, ignored=torch.zeros(0, 4))
    images = torch.randn(1, 3, height, width, generator=random)
    return Batch(images, [(height, width)], [target], [ImageInfo("noise", (height, width))])


def peak() -> int:
    """The highest resident memory of this process since the last reset, in bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def measure(architecture: str, objects: int, height: int, width: int, checkpointing: bool) -> int:
    """Bytes that a step with so many objects takes."""
    torch.manual_seed(0)
    model = create_model(architecture).train()
    model.set_grad_checkpointing(checkpointing)
    given = batch(objects, height, width)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak counts from here
    before = peak()
    torch.stack(list(model.loss(given).values())).sum().backward()
    return peak() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="dino_focalnet_tiny_srf")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1333), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--objects", type=int, nargs="+", default=(50, 500))
    parser.add_argument("--checkpointing", action="store_true", help="recompute backbone and encoder")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        print(measure(given.architecture, given.objects[0], *given.size, given.checkpointing))
        return
    taken = {}
    for objects in given.objects:
        arguments = ["--architecture", given.architecture, "--size", *map(str, given.size), "--objects", str(objects)]
        arguments += ["--alone", *(["--checkpointing"] if given.checkpointing else [])]
        found = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
        taken[objects] = int(found.stdout) / 2**20
    fewest = taken[given.objects[0]]
    for objects, mebibytes in taken.items():
        print(json.dumps({"objects": objects, "MiB": round(mebibytes, 1), "ratio": round(mebibytes / fewest, 3)}))


if __name__ == "__main__":
    main()
