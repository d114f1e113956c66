"""Normalization of losses by object counts in distributed training."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def mean_over_processes(count: Tensor) -> Tensor:
    """The mean of a count over all processes, at least 1, so that all of them divide by the same number."""
    mean = count.detach().float()
    if dist.is_available() and dist.is_initialized():
        mean = mean.clone()
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    return mean.clamp(min=1)
