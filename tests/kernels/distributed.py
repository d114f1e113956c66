"""Wraps small models by DDP, FSDP1 and FSDP2, in one process of one rank; prints a line for each.

python -m tests.kernels.distributed FILE_FOR_RENDEZVOUS
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
import torch.distributed as dist
from tests.kernels.test_matrix import IMAGES, distance, fast, output, plain
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

import focalnet
from focalnet.errors import FocalNetError
from focalnet.nn import FocalNetBlock

KINDS = ("ours", "ours, large", "timm", "transformers")


def blocks(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if type(m).__name__.endswith(("FocalNetBlock", "FocalNetLayer"))]


def ddp(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def fsdp1(model: nn.Module) -> nn.Module:
    kinds = {type(block) for block in blocks(model)}
    return FullyShardedDataParallel(
        model, auto_wrap_policy=ModuleWrapPolicy(kinds), use_orig_params=True, device_id=torch.device("cpu")
    )


def fsdp2(model: nn.Module) -> nn.Module:
    mesh = dist.init_device_mesh("cpu", (1,))
    for block in blocks(model):
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)  # type: ignore[return-value]


def step(model: Any, optimizer: torch.optim.Optimizer) -> None:
    """A training step, large enough to have a visible effect."""
    out = model(IMAGES)
    getattr(out, "logits", out).square().mean().backward()
    optimizer.step()


def main(rendezvous: str) -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    for kind in KINDS:
        for wrap in (ddp, fsdp1, fsdp2):
            truth, model = plain(kind), wrap(fast(kind, "fused"))
            # Before the first pass: after one without gradients FSDP2 shows the gathered weights for a while.
            optimizers = [torch.optim.SGD(m.parameters(), lr=0.02) for m in (truth, model)]
            before = output(truth)
            first = distance(output(model), before)
            step(truth, optimizers[0])
            step(model, optimizers[1])
            second, changed = distance(output(model), output(truth)), distance(output(truth), before)
            print(f"{kind}: {wrap.__name__}: {first:.1e} {second:.1e} {changed:.1e}", flush=True)
            ours = isinstance(blocks(model)[0], FocalNetBlock)
            if ours and wrap is fsdp2:
                try:
                    focalnet.accelerate(model, undo=True)
                except FocalNetError as error:
                    print(f"{kind}: undo: {error}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
