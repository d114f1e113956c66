"""From samples to batches: which images make up which batch, collated, repeatable, and shared out among processes."""

from __future__ import annotations

import itertools
import logging
import os
import random
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed
from torch.utils.data import DataLoader, IterableDataset, Sampler, get_worker_info

from focalnet.data.preprocess import pad
from focalnet.errors import DataError, FocalNetError
from focalnet.samples import Batch, ObjectTarget, Sample, View

if TYPE_CHECKING:
    from focalnet.data.dataset import Samples
    from focalnet.data.readers.webdataset import ShardDataset

logger = logging.getLogger(__name__)

T = TypeVar("T")


def collate(samples: Sequence[Sample[Any] | None], divisor: int = 1, *, training: bool = False) -> Batch[Any]:
    """Makes a batch of samples; broken images (None) are left out.

    Images are padded with zeros right and below, and masks of objects alike. Class indices become one
    tensor, and so do the labels of several classes.

    Args:
        samples: of any sizes; each has as many views.
        divisor: the sides of the batch are multiples of it.
        training: whether label maps and panoptic ids belong to the images as the network sees them, and are padded
            like those; in evaluation they keep the size of the images on disk.

    Raises:
        DataError: there is not one whole image.
    """
    whole = only_whole(samples)
    first, *views = (
        View(pad(images, divisor), [(image.shape[-2], image.shape[-1]) for image in images])
        for images in zip(*([sample.image, *sample.views] for sample in whole), strict=True)
    )
    size = (first.images.shape[-2], first.images.shape[-1])
    targets: Any = [sample.target for sample in whole]
    if isinstance(targets[0], int):
        targets = torch.tensor(targets)
    elif isinstance(targets[0], torch.Tensor):
        targets = torch.stack(targets)
    elif training or isinstance(targets[0], ObjectTarget):
        targets = [target.padded(size) for target in targets]
    return Batch(first.images, first.sizes, targets, [sample.info for sample in whole], views)


def only_whole(samples: Sequence[T | None]) -> list[T]:
    """Without the broken images (None).

    Raises:
        DataError: there is not one whole image.
    """
    whole = [sample for sample in samples if sample is not None]
    if not whole:
        raise DataError("every image of a batch is broken, too many to skip; the warnings above name them")
    return whole


class Loader(DataLoader[Any]):
    """A ``DataLoader`` that can go on within an epoch, reports skipped images, and fails in one line.

    Lightning sets the epoch through ``sampler``, keeps ``state_dict`` in its checkpoints and gives it back on resume.

    Args:
        samples: ``Samples`` with an ``EpochBatches``, or a ``ShardDataset`` alone.
        order: which samples make up which batch.
        collate: samples to a batch.
        options: those of ``torch.utils.data.DataLoader``.
    """

    def __init__(
        self,
        samples: Samples[Any, Any] | ShardDataset,
        order: EpochBatches | None = None,
        *,
        collate: Callable[..., Batch[Any]],
        **options: Any,
    ) -> None:
        # Its own generator: starting a pass draws from it, which must not move the training's random numbers.
        options |= {"collate_fn": collate, "generator": torch.Generator(), "worker_init_fn": _outlive_signals}
        if isinstance(samples, IterableDataset):
            super().__init__(samples, batch_size=None, **options)
            self.sampler.set_epoch = samples.set_epoch  # type: ignore[attr-defined]  # where Lightning looks for it
            self._order: EpochBatches | ShardDataset = samples
        else:
            assert order is not None
            super().__init__(samples, batch_sampler=order, **options)
            self._order = order
        self._samples = samples
        self._given = 0
        self._told = ""
        self._resume: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator: it starts after ``set_epoch``
        resume, self._resume = self._resume, {}
        self._given = resume["batches"] if resume.get("epoch") == self._order.epoch else 0
        if isinstance(self._order, EpochBatches):
            self._order.skip, discard = self._given, 0
        else:
            discard = self._given  # a stream has to be read to its place
        try:
            for batch in itertools.islice(super().__iter__(), discard, None):
                self._given += 1
                yield batch
        except FocalNetError as error:
            raise type(error)(_last_line(error)) from error
        except (RuntimeError, EOFError, OSError) as error:
            if not self._is_death(error):
                raise
            raise DataError(
                f"a process that loads images died ({_last_line(error)}), most likely because memory ran out; "
                "use fewer num_workers, or 0 to see the error itself"
            ) from error
        finally:
            self._report()

    def state_dict(self) -> dict[str, int]:
        """How many batches of which epoch have been given."""
        state = {"epoch": self._order.epoch, "batches": self._given}
        return state if isinstance(self._order, EpochBatches) else {**state, "readers": self._readers()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next pass, if it is of that epoch, goes on behind the batches given.

        Raises:
            DataError: a stream was read by another number of processes and workers, which is in another order.
        """
        if state.get("readers", self._readers()) != self._readers():
            raise DataError(
                f"{state['readers']} workers in all have read the shards, {self._readers()} would read them in another "
                "order: go on with the same trainer.devices and data.num_workers"
            )
        self._resume = dict(state)

    def _readers(self) -> int:
        return world()[1] * max(self.num_workers, 1)

    def _is_death(self, error: Exception) -> bool:
        """Whether a worker was lost, as against an error that a worker met and handed on whole."""
        if not self.num_workers or str(error).startswith("Caught "):
            return False
        lost_in_transfer = isinstance(error, (EOFError, ConnectionError, FileNotFoundError))
        return lost_in_transfer or "DataLoader worker" in str(error)

    def _report(self) -> None:
        broken = self._samples.broken()
        if broken and broken != self._told:
            self._told = broken
            logger.warning("skipped %s so far", broken)


def _outlive_signals(worker: int) -> None:
    """Lets a loader worker go on when a scheduler signals all processes of a job: the training process ends it.

    Its SIGTERM still ends the worker, and so does its own end, which PyTorch's workers look for.
    """
    for name in ("SIGHUP", "SIGUSR1", "SIGINT"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return

    def await_parent() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=await_parent, daemon=True).start()


def cores_per_process(processes: int) -> int:
    """How many workers each of this machine's training processes should have: one a core, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(1, cores // processes))


def _last_line(error: Exception) -> str:
    # An error of a worker arrives with the worker's traceback as its text; its last line is "module.Type: message".
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].partition(": ")[2] if lines[0].startswith("Caught ") else " ".join(lines)


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

    In training, the images are shuffled by ``(seed, epoch)``, the incomplete last batch is left out, and
    process ``r`` of ``n`` takes every ``n``-th image from the ``r``-th on: batch ``t`` of all processes
    together is the same set for any ``n``. In evaluation every image comes once, in order, in batches of
    nearly equal size, as many in each process: where each takes one image at a time and their number does not divide
    evenly, one batch has two.

    Args:
        size: number of images.
        batch_size: over all processes.
        seed: of the shuffle.
        training: shuffle and leave out the rest, or take everything once.
        groups: by index; in training, images of one group share a batch (see ``by_group``): those upright do not
            pad those lying, and the other way round.
        labels: by index; in training, every class is drawn equally often; see ``balanced_order``.

    Raises:
        DataError: the batch size does not divide among the processes.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        training: bool,
        groups: Sequence[int] | None = None,
        labels: npt.NDArray[Any] | None = None,
    ) -> None:
        self.size, self.batch_size, self.seed, self.training, self.groups = size, batch_size, seed, training, groups
        self.labels = labels
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
        return max(1, min(wanted, self.size // processes))  # as many as the process with the fewest images can fill

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
        random_numbers = np.random.default_rng((self.seed, self.epoch))
        if self.labels is None:
            order = random_numbers.permutation(self.size)
        else:
            order = balanced_order(self.labels, random_numbers)
        order = order[: len(self) * self.batch_size]
        if self.groups is not None:
            order = by_group(order, self.groups, self.batch_size)
        return order[rank::processes]


def balanced_order(labels: npt.NDArray[Any], random_numbers: np.random.Generator) -> npt.NDArray[np.int64]:
    """As many images as there are, of every class equally many but for one, in random order.

    Of a class with too few, each comes as often as another but for one; of one with too many, chance chooses. Where
    images can have several classes, each class is drawn equally often, and so are images of no class.

    Args:
        labels: by index, ``(N,)``; or whether each image has each class, ``(N, C)``.
        random_numbers: what is drawn from.

    Returns:
        Indices ``(N,)``.
    """
    if labels.ndim == 1:
        groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    else:
        groups = [np.flatnonzero(has_class) for has_class in (*labels.T, ~labels.any(1))]
        groups = [members for members in groups if len(members)]
    chosen = []
    for place, group in enumerate(random_numbers.permutation(len(groups)).tolist()):
        members = groups[group]
        wanted = len(labels) // len(groups) + (place < len(labels) % len(groups))
        rounds = [random_numbers.permutation(members) for _ in range(-(-wanted // len(members)))]
        chosen.append(np.concatenate(rounds)[:wanted])
    return random_numbers.permutation(np.concatenate(chosen))


def by_group(order: npt.NDArray[np.int64], groups: Sequence[int], batch_size: int) -> npt.NDArray[np.int64]:
    """Rearranges images so that each batch is of one group, but for what is left of all groups in the end.

    A batch comes where its last image was; images of one group keep their order. What is left, less than a batch of
    each group, comes last and together, as in mmdet: left out, a group with few images would never be trained on.

    Args:
        order: indices of images, ``(N,)``.
        groups: by index.
        batch_size: so many in a row are a batch.

    Returns:
        The same indices, ``(N,)``.
    """
    waiting: defaultdict[int, list[int]] = defaultdict(list)
    arranged: list[int] = []
    for index in order.tolist():
        members = waiting[groups[index]]
        members.append(index)
        if len(members) == batch_size:
            arranged += members
            members.clear()
    left = [index for members in waiting.values() for index in members]
    return np.array(arranged + left, dtype=np.int64)


def seed_all(*key: int) -> None:
    """Seeds ``random``, ``numpy.random`` and ``torch`` (CPU) with numbers of 0 or more.

    timm's RandAugment draws from the first two, torchvision's transforms from ``torch``.
    """
    for_python, for_numpy, high, low = np.random.SeedSequence(key).generate_state(4).tolist()
    random.seed(for_python)
    np.random.seed(for_numpy)
    torch.default_generator.manual_seed(high << 32 | low)  # torch.manual_seed would seed every GPU too


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Afterwards ``random``, ``numpy.random`` and ``torch`` (CPU) go on as if nothing had been seeded or drawn inside.

    In a loader's worker nobody else draws, and nothing is kept.
    """
    if get_worker_info() is not None:
        yield
        return
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
