"""Decoded, augmented and collated: the dataset and the loader around any source of pictures."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch.utils.data import DataLoader

from focalnet.data.datasets.shards import ShardDataset
from focalnet.data.datasets.source import Source
from focalnet.data.preprocess import Transform, pad
from focalnet.data.samples import Samples, only_whole
from focalnet.data.sampling import EpochBatches
from focalnet.errors import DataError, FocalNetError
from focalnet.samples import Batch, ImageInfo, ObjectTarget, Sample, View

logger = logging.getLogger(__name__)


class ImageDataset(Samples[Sample[int], Image]):
    """The pictures of a source as samples.

    Args:
        source: the pictures.
        transform: picture to tensor.
        seed: with epoch and index it determines what a random transform does.
        training: whether the transform is random, and whether a broken picture is replaced or left out.
        on_error: as for ``Samples``.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        *,
        seed: int = 0,
        training: bool = False,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        super().__init__(len(source), seed=seed, training=training, on_error=on_error)
        self.source, self.transform = source, transform

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    def path(self, index: int) -> str:
        return self.source.path(index)

    def read(self, index: int) -> Image:
        return self.source.read(index)

    def prepare(self, read: Image, index: int) -> Sample[int]:
        return Sample(
            image=self.transform(read),
            target=int(self.source.labels[index]),
            info=ImageInfo(self.path(index), (read.height, read.width)),
        )


def collate(samples: Sequence[Sample[Any] | None], divisor: int = 1, *, training: bool = False) -> Batch[Any]:
    """Makes a batch of samples; broken images (None) are left out.

    Images are padded with zeros right and below, and masks of objects alike. Class indices become one tensor.

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
    elif training or isinstance(targets[0], ObjectTarget):
        targets = [target.padded(size) for target in targets]
    return Batch(first.images, first.sizes, targets, [sample.info for sample in whole], views)


class Loader(DataLoader[Any]):
    """A ``DataLoader`` that can go on within an epoch, reports skipped pictures, and fails in one line.

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
        options |= {"collate_fn": collate, "generator": torch.Generator()}
        if isinstance(samples, ShardDataset):
            super().__init__(samples, batch_size=None, **options)
            self.sampler.set_epoch = samples.set_epoch  # type: ignore[attr-defined]  # where Lightning looks for it
            self._order: EpochBatches | ShardDataset = samples
        else:
            assert order is not None
            super().__init__(samples, batch_sampler=order, **options)
            self._order = order
        self._samples = samples
        self._given = 0
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
                f"a process that loads images died ({_last_line(error)}), most often for want of memory; "
                "use fewer num_workers, or 0 to see the error itself"
            ) from error
        finally:
            self._report()

    def state_dict(self) -> dict[str, int]:
        """How many batches of which epoch have been given."""
        return {"epoch": self._order.epoch, "batches": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next pass, if it is of that epoch, goes on behind the batches given."""
        self._resume = dict(state)

    def _is_death(self, error: Exception) -> bool:
        """Whether a worker was lost, as against an error that a worker met and handed on whole."""
        if not self.num_workers or str(error).startswith("Caught "):
            return False
        lost_in_transfer = isinstance(error, (EOFError, ConnectionError, FileNotFoundError))
        return lost_in_transfer or "DataLoader worker" in str(error)

    def _report(self) -> None:
        if broken := self._samples.broken():
            logger.warning("skipped %s so far", broken)


def cores_per_process(processes: int) -> int:
    """How many workers each of this machine's training processes should have: one a core, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(1, cores // processes))


def _last_line(error: Exception) -> str:
    # An error of a worker arrives with the worker's traceback as its text; its last line is "module.Type: message".
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].partition(": ")[2] if lines[0].startswith("Caught ") else " ".join(lines)
