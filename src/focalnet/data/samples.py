"""Pictures as samples, whatever is known of them: repeatable, and broken ones are named, replaced or left out."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, Literal, TypeAlias, TypeVar

import torch
from torch.utils.data import Dataset

from focalnet.data.datasets.source import MAX_BROKEN_IN_A_ROW
from focalnet.data.seeding import random_state_kept, seed_all
from focalnet.errors import DataError, ImageError

logger = logging.getLogger(__name__)

#: ``(epoch, index)``, or an index alone for epoch 0.
Key: TypeAlias = int | tuple[int, int]

S = TypeVar("S")  # a sample
P = TypeVar("P")  # what it is made of: a picture with what is known of it


class Samples(Dataset["S | None"], ABC, Generic[S, P]):
    """What is done to a picture is a function of seed, epoch and index alone.

    Args:
        count: number of pictures.
        seed: with epoch and index it determines what is random.
        training: whether anything is, and whether a broken picture is replaced or left out.
        on_error: ``"raise"``: a broken picture is an error. ``"skip"``: in training the next whole one takes
            its place, so that batches keep their size; in evaluation it is left out (the sample is None).
    """

    def __init__(self, count: int, *, seed: int, training: bool, on_error: Literal["raise", "skip"]) -> None:
        self.seed, self.training, self.on_error = seed, training, on_error
        # Shared with the workers so that the main process can report: one byte a picture, which is only ever set.
        self._broken = torch.zeros(count, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]

    @property
    @abstractmethod
    def name(self) -> str:
        """What messages call the set: a path."""

    @property
    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """By label."""

    @abstractmethod
    def path(self, index: int) -> str:
        """A name that finds the picture again."""

    @abstractmethod
    def read(self, index: int) -> P:
        """A picture with what is known of it, as on disk.

        Raises:
            ImageError: it cannot be decoded, or does not fit what is known of it; the message names it.
        """

    @abstractmethod
    def prepare(self, read: P, index: int) -> S:
        """The sample; in training with random numbers of its own."""

    def __len__(self) -> int:
        return len(self._broken)

    def __getitem__(self, key: Key) -> S | None:
        if not 0 <= (key[1] if isinstance(key, tuple) else key) < len(self):
            raise IndexError(f"{key} of {len(self)} samples")  # which also ends a loop over them
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[S | None]:
        """A batch at a time, as torch's loader prefers to ask: the random state is kept once for all."""
        with random_state_kept():
            return [self._sample(*key) if isinstance(key, tuple) else self._sample(0, key) for key in keys]

    def broken(self) -> str:
        """How many pictures were found broken so far, by any worker, and the first few; or nothing."""
        found = self._broken.nonzero().flatten().tolist()
        names = ", ".join(self.path(index) for index in found[:5])
        return f"{len(found)} broken images ({names}{', ...' * (len(found) > 5)})" if found else ""

    def _sample(self, epoch: int, index: int) -> S | None:
        read, used = self._whole(index)
        if read is None:
            return None
        if self.training:
            seed_all(self.seed, epoch, index)
        return self.prepare(read, used)

    def _whole(self, index: int) -> tuple[P | None, int]:
        tries = min(MAX_BROKEN_IN_A_ROW, len(self)) if self.training else 1
        for candidate in (place % len(self) for place in range(index, index + tries)):
            try:
                return self.read(candidate), candidate
            except ImageError as error:
                if self.on_error == "raise":
                    raise ImageError(f'{error}; to go on without such images: on_error "skip"') from error
                if not self._broken[candidate]:
                    self._broken[candidate] = 1
                    logger.warning("skipped a broken image: %s", error)
        if self.training:
            raise DataError(f"{self.path(index)} and the images after it are all broken, too many to skip")
        return None, index


def only_whole(samples: Sequence[S | None]) -> list[S]:
    """Without the broken pictures (None).

    Raises:
        DataError: there is not one whole picture.
    """
    whole = [sample for sample in samples if sample is not None]
    if not whole:
        raise DataError("every image of a batch is broken, too many to skip; the warnings above name them")
    return whole
