"""How much memory a training step needs: estimated before the first epoch, or tried at the largest image size."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor

from focalnet.data.loader import random_state_kept
from focalnet.errors import ConfigError, TrainingError
from focalnet.models.base import Model
from focalnet.samples import Batch
from focalnet.training.tasks.base import Task

log = logging.getLogger(__name__)

GIB = 2**30
WAY_OUT = "lower --data.batch_size or the image size, or add --model.grad_checkpointing true"
#: Of the memory that is free, what an estimate may take: it does not count temporary results and the libraries, with
#: which a Mask R-CNN of 512 x 800 pixels took nearly twice its estimate on a CPU (docs/training.md).
SAFE_SHARE = 0.6
LARGEST_AUTOMATIC_BATCH = 256
COUNTED_IMAGES = 2  # of the batch whose memory is counted: batch norms do not train on a single one


class Probe(pl.Callback):
    """Says what a training step needs before the first epoch, and tries one on request.

    Args:
        tries: run a step forward and backward at the largest size; the training that follows is as without.
    """

    def __init__(self, *, tries: bool) -> None:
        self.tries = tries

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        _tell_of_a_crowded_machine(trainer, pl_module.data)
        sharded = isinstance(trainer.strategy, FSDPStrategy)
        if sharded or pl_module.compile_network:
            if self.tries:
                raise ConfigError(
                    "trainer.probe cannot be combined with trainer.strategy=fsdp or model.compile: leave it out"
                )
            return
        share = pl_module.data.batch_size // trainer.world_size
        count = min(share, COUNTED_IMAGES)
        few = pl_module.data.largest_batch(count)
        if few is None:  # of a stream
            return
        with trainer.precision_plugin.forward_context(), _untouched(pl_module.network):
            saved = saved_bytes(pl_module.network, move_data_to_device(few, pl_module.device))
        needed = fixed_bytes(pl_module) + share * saved // count
        free = free_bytes(pl_module.device)
        if trainer.is_global_zero:
            log.info("a training step needs at least %s of memory", _gib(needed))
        if free is not None and needed > SAFE_SHARE * free:
            most = max(1, int(share * SAFE_SHARE * free / needed) * trainer.world_size)
            message = f"a training step needs at least {_gib(needed)} of memory, and {_gib(free)} are free"
            if self.tries and needed > free:
                raise TrainingError(f"{message}: {WAY_OUT}, a batch of about {most}")
            log.warning("%s: if the system ends the run, %s", message, WAY_OUT)
        if self.tries:
            self._try(trainer, pl_module, share)

    def _try(self, trainer: pl.Trainer, task: Task, share: int) -> None:
        batch = move_data_to_device(task.data.largest_batch(share), task.device)
        with _untouched(task.network), trainer.precision_plugin.forward_context():
            loss = torch.stack(list(task.network.loss(batch).values())).sum()
            loss.backward()  # type: ignore[no-untyped-call]
        height, width = batch.images.shape[-2:]
        log.info("a training step of %d images of %d x %d pixels fits into memory", share, height, width)


def fixed_bytes(task: Task) -> int:
    """Weights, gradients and the two moments of the optimizer, and the moving average."""
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in task.network.parameters()]
    every, trained = sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)
    return every + 3 * trained + (0 if task.average is None else every)


def saved_bytes(network: Model[Any, Any], batch: Batch[Any]) -> int:
    """Bytes that the forward pass of a batch keeps for its backward pass, besides the parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage  # held, or its address would be given to another one
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = network.loss(batch)
    del losses
    return sum(storage.nbytes() for storage in kept.values())


@contextmanager
def _untouched(network: Model[Any, Any]) -> Iterator[None]:
    """Afterwards, random numbers, buffers (those of batch norms) and gradients are as before."""
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    gpus = [network.device] if network.device.type == "cuda" else []
    with random_state_kept(), torch.random.fork_rng(gpus):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            network.zero_grad(set_to_none=True)


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device; None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [_available(), _of_container()]
    known = [value for value in found if value is not None]
    return min(known) if known else None


def _available() -> int | None:
    """What Linux estimates a new process could use."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError, StopIteration):
        return None


def _of_container() -> int | None:
    """What is left to the control group of this process, as containers have it."""
    try:
        most, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current"))
        return None if most == "max" else max(0, int(most) - int(used))
    except (OSError, ValueError):
        return None


def automatic_batch_size(task: Task, data: Any, device: torch.device) -> int:
    """The largest power of two for which a training step at the largest size should fit into memory.

    Args:
        task: not yet with a network.
        data: opened for training.
        device: that trains.

    Raises:
        ConfigError: a stream does not tell its images, or not even one image fits.
    """
    few = data.largest_batch(COUNTED_IMAGES)
    if few is None:
        raise ConfigError("data.batch_size=auto needs images that can be counted, not WebDataset shards: give a number")
    with random_state_kept():
        network = task.build(data.num_classes, task.num_things(data)).to(device)
        network.set_grad_checkpointing(task.grad_checkpointing)
    task.network = network
    each = saved_bytes(network, move_data_to_device(few, device)) / COUNTED_IMAGES
    fixed, free = fixed_bytes(task), free_bytes(device)
    if free is None:
        raise ConfigError("data.batch_size=auto: this system does not tell how much memory is free; give a number")
    most = min(int((SAFE_SHARE * free - fixed) / each), LARGEST_AUTOMATIC_BATCH, len(data.samples["train"]))
    if most < 1:
        raise ConfigError(f"data.batch_size=auto: one image needs {_gib(each + fixed)}, and {_gib(free)} are free")
    return 1 << (most.bit_length() - 1)


def _tell_of_a_crowded_machine(trainer: pl.Trainer, data: Any) -> None:
    """Says so where other programs compete for the processor, which makes all of them far slower than their share."""
    if trainer.strategy.root_device.type != "cpu" or not hasattr(os, "getloadavg") or not trainer.is_global_zero:
        return
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    load = os.getloadavg()[0]
    if load > 1.5 * cores and threads > 1:
        log.info(
            "other programs keep this machine busy (load %.0f on %d cores): fewer threads may be faster, "
            "OMP_NUM_THREADS=%d and --data.num_workers 1",
            *(load, cores, max(1, threads // 2)),
        )


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.0f} MiB"
