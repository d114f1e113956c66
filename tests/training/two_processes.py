"""What ``test_distributed.py`` has two processes do: ``python -m tests.training.two_processes FOLDER``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

from focalnet import registry
from focalnet.card import ModelCard, Preprocessing
from focalnet.cli.main import main as command_line
from focalnet.cli.train import fit, validate
from focalnet.models import Mask2Former
from focalnet.models.mask2former.loss import losses as mask2former_losses
from focalnet.samples import Batch
from focalnet.training import finishing
from tests.models import small

# Nothing is drawn within a step, which each process would do for its own images. With so large an epsilon the updates
# are proportional to the gradients, which AdamW otherwise divides by their own size.
NANO = {
    "depths": [1, 1, 1], "embed_dim": 8, "focal_levels": [1, 1, 1], "focal_windows": [3, 3, 3], "drop_path_rate": 0.0
}  # fmt: skip
OPTIMIZER = {"lr": 0.02, "reference_batch": None, "eps": 1e-2}
SCHEDULE = {"warmup_epochs": 0}
IMAGES = {"batch_size": 2, "num_workers": 0, "image_size": 60, "max_size": 96}
TRAINER = {"max_epochs": 1, "accelerator": "cpu", "logger": False}
RECIPES: dict[str, dict[str, Any]] = {
    "boxes": {
        "task": "detection",
        "model": {
            "architecture": "atss_focalnet_nano",
            "options": {**NANO, "neck": {"channels": 32, "extra": "conv"}, "channels": 32, "convs": 1},
            "optimizer": OPTIMIZER,
            "schedule": SCHEDULE,
        },
        "data": {**IMAGES, "masks": False, "augmentation": {"short_sides": [60], "crop_prob": 0.0}},
        "trainer": TRAINER,
    },
    "maps": {
        "task": "semantic",
        "model": {
            "architecture": "upernet_focalnet_nano",
            "options": {**NANO, "dropout": 0.0, "channels": 16, "auxiliary_channels": 8},
            "optimizer": OPTIMIZER,
            "schedule": SCHEDULE,
        },
        "data": {**IMAGES, "augmentation": {"crop": [32, 36]}},
        "trainer": {**TRAINER, "sync_batchnorm": True},
    },
    "segments": {
        "task": "panoptic",
        "model": {"architecture": "mask2former_focalnet_nano"},
        "data": IMAGES,
        "trainer": TRAINER,
    },
}


def panoptic_network() -> Mask2Former:
    """One that finds segments, right ones among them, without training: it is measured, not good."""
    torch.manual_seed(0)
    network = small.mask2former(num_classes=4, num_queries=20, overlap_threshold=0.0).build()
    network.card = ModelCard(name="toy.test", preprocessing=Preprocessing(image_size=60, max_size=96))
    return network


def networks() -> dict[str, Any]:
    """Those whose losses are divided by what all processes have in their images."""
    torch.manual_seed(0)
    configs = (small.config("atss"), small.config("sparse_rcnn"), small.mask2former())
    return {registry.family_of(config).name: config.build().train() for config in configs}


def gradients(network: Any, images: slice) -> dict[str, Tensor]:
    """Of the losses of some of two images, of which one has three objects and the other one."""
    torch.manual_seed(1)
    batch, counts = small.images()[images], (3, 1)[images]
    if not isinstance(network, Mask2Former):
        targets = [small.target(count) for count in counts]
        losses = network.loss(Batch(batch, small.SIZES[images], targets, []))
    else:
        segments = [small.segments(count) for count in counts]
        losses = mask2former_losses(network.config, network.training_outputs(batch), segments, same_points)
        # A mean over each process's own queries, as in the original; the others are what is shared.
        losses = {name: value for name, value in losses.items() if "cls" not in name}
    network.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def same_points(rows: int, points: int, _: int, device: torch.device) -> Tensor:
    """For every mask the same, whichever process has it."""
    place = torch.rand(1, points, 2, generator=torch.Generator().manual_seed(0))
    return place.expand(rows, -1, -1).to(device)


def shared_gradients(network: Any) -> dict[str, Tensor]:
    """The mean over two processes with an image each, as data-parallel training has it."""
    rank = dist.get_rank()
    own = gradients(network, slice(rank, rank + 1))
    for value in own.values():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return own


class NormsOnCPU:
    """The arithmetic of PyTorch's synchronised batch norm, which it has for GPUs only: its kernels, for CPUs.

    x is (B, C, H, W); statistics are by channel, those of all processes ``(processes, C)``.
    """

    def __init__(self) -> None:
        self.library = torch.library.Library("aten", "IMPL", "CPU")
        for name in ("stats", "gather_stats_with_counts", "elemt", "backward_reduce", "backward_elemt"):
            self.library.impl(f"batch_norm_{name}", getattr(self, name))
        torch._C._get_privateuse1_backend_name = lambda: "cpu"  # what SyncBatchNorm allows besides GPUs
        DistributedDataParallel._passing_sync_batchnorm_handle = lambda *_: None  # it asks for GPUs, too

    @staticmethod
    def stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        return mean, (variance + eps).rsqrt()

    @staticmethod
    def gather_stats_with_counts(
        x: Tensor,
        means: Tensor,
        scales: Tensor,
        running_mean: Tensor,
        running_variance: Tensor,
        momentum: float,
        eps: float,
        counts: Tensor,
    ) -> tuple[Tensor, Tensor]:
        share = counts[:, None] / counts.sum()
        mean = (share * means).sum(0)
        variance = (share * (scales**-2 - eps + (means - mean) ** 2)).sum(0)
        running_mean.lerp_(mean, momentum)
        running_variance.lerp_(variance * counts.sum() / (counts.sum() - 1), momentum)
        return mean, (variance + eps).rsqrt()

    @staticmethod
    def elemt(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor, eps: float) -> Tensor:
        weight, bias, mean, scale = (v[:, None, None] for v in (weight, bias, mean, scale))
        return (x - mean) * scale * weight + bias

    @staticmethod
    def backward_reduce(
        dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, *wanted: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        total = dy.sum((0, 2, 3))
        product = (dy * (x - mean[:, None, None])).sum((0, 2, 3))
        return total, product, product * scale, total

    @staticmethod
    def backward_elemt(
        dy: Tensor,
        x: Tensor,
        mean: Tensor,
        scale: Tensor,
        weight: Tensor,
        total: Tensor,
        product: Tensor,
        counts: Tensor,
    ) -> Tensor:
        mean, scale, weight, total, product = (v[:, None, None] for v in (mean, scale, weight, total, product))
        centred = dy - total / counts.sum() - (x - mean) * scale**2 * product / counts.sum()
        return centred * scale * weight


def shard_on_cpu() -> None:
    """Lightning allows FSDP on GPUs only; what it then does works on CPUs, too."""
    constructor = FullyShardedDataParallel.__init__
    _AcceleratorConnector._check_strategy_and_fallback = lambda self: None
    FullyShardedDataParallel.__init__ = lambda self, *args, device_id, **options: constructor(
        self, *args, device_id=torch.device("cpu"), **options
    )


def main(folder: Path) -> None:
    shard_on_cpu()
    finishing.write_report = lambda *_: None  # drawing takes longer than all the rest
    dist.init_process_group("gloo")
    for arguments in json.loads((folder / "commands.json").read_text()):
        assert command_line(arguments) == 0
    kept = NormsOnCPU()
    found: dict[str, Any] = {"gradients": {name: shared_gradients(one) for name, one in networks().items()}}
    in_two = {"trainer.devices": 2, "trainer.strategy": "ddp"}
    for name in ("boxes", "maps"):
        fit(folder / f"{name}.yaml", output=folder / "two" / name, **in_two, **{"data.root": str(folder / name)})
    options = {**in_two, "data.root": str(folder / "segments")}
    found["segments"] = validate(folder / "segments.yaml", folder / "segments.safetensors", **options)
    torch.save(found, folder / f"{dist.get_rank()}.pt")
    del kept


if __name__ == "__main__":
    main(Path(sys.argv[1]))
