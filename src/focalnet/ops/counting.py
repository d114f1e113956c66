"""How many objects a loss is divided by, when several processes share a batch."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def mean_over_processes(count: Tensor) -> Tensor:
    """The mean of a count over all processes, so that each divides by the same; at least 1."""
    mean = count.detach().float()
    if dist.is_available() and dist.is_initialized():
        mean = mean.clone()
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    return mean.clamp(min=1)
