"""Which pictures make up which batch: a function of seed and epoch, shared out among the processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch.distributed
from torch.utils.data import Sampler

from focalnet.data.grouping import by_kind
from focalnet.errors import DataError


def world() -> tuple[int, int]:
    """This process's rank and the number of processes, as ``torch.distributed`` has them by now."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def per_process(batch_size: int) -> int:
    """One process's share of a global batch.

    Raises:
        DataError: it does not divide evenly.
    """
    _, processes = world()
    if batch_size % processes:
        raise DataError(f"batch_size={batch_size} (over all processes) cannot be divided by {processes} processes")
    return batch_size // processes


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of ``(epoch, index)``, so that a dataset in any worker knows the epoch without shared state.

    In training, the pictures are shuffled by ``(seed, epoch)``, the incomplete last batch is left out, and
    process ``r`` of ``n`` takes every ``n``-th picture from the ``r``-th on: batch ``t`` of all processes
    together is the same set for any ``n``. In evaluation every picture comes once, in order, in batches of
    nearly equal size, as many in each process: where each takes one picture at a time and their number does not divide
    evenly, one batch has two.

    Args:
        size: number of pictures.
        batch_size: over all processes.
        seed: of the shuffle.
        training: shuffle and leave out the rest, or take everything once.
        kinds: by index; in training, pictures of one kind share a batch (see ``by_kind``).

    Raises:
        DataError: the batch size does not divide among the processes.
    """

    def __init__(
        self, size: int, batch_size: int, *, seed: int, training: bool, kinds: Sequence[int] | None = None
    ) -> None:
        self.size, self.batch_size, self.seed, self.training, self.kinds = size, batch_size, seed, training, kinds
        per_process(batch_size)
        self.epoch = 0
        self.skip = 0  # batches that the next pass leaves out: an interrupted epoch goes on behind them

    @property
    def sampler(self) -> EpochBatches:
        """Where Lightning looks for ``set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Chooses the shuffle of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.training:
            return self.size // self.batch_size
        _, processes = world()
        share = -(-self.size // processes)
        wanted = -(-share // per_process(self.batch_size))
        return max(1, min(wanted, self.size // processes))  # as many as the process with the fewest pictures can fill

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        skip, self.skip = self.skip, 0
        epoch = self.epoch
        for batch in np.array_split(self._indices(), len(self))[skip:]:
            yield [(epoch, index) for index in batch.tolist()]

    def _indices(self) -> npt.NDArray[np.int64]:
        rank, processes = world()
        if not self.training:
            indices = np.arange(rank, self.size, processes)
            if not len(indices):
                raise DataError(f"{self.size} images are too few for {processes} processes: start fewer")
            return indices
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size)
        order = order[: len(self) * self.batch_size]
        if self.kinds is not None:
            order = by_kind(order, self.kinds, self.batch_size)
        return order[rank::processes]
