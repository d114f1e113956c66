"""What the data of all dense tasks have in common: parts that are opened when a stage needs them, and their loaders."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch
from lightning.pytorch import LightningDataModule

from focalnet.card import Preprocessing
from focalnet.data.datasets.collection import Part
from focalnet.data.loading import Loader, collate, cores_per_process
from focalnet.data.samples import Samples
from focalnet.data.sampling import EpochBatches
from focalnet.errors import ConfigError, DataError

_PARTS: dict[str, tuple[Part, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}

D = TypeVar("D", bound=Samples[Any, Any])


class DenseData(LightningDataModule, ABC, Generic[D]):
    """Loaders of batches for training, validation and test.

    Args:
        root: the folder of the data set.
        image_size: short side in pixels of the network's input, in evaluation.
        max_size: most pixels of the long side.
        mean: per channel, of values in [0, 1], for normalisation.
        std: per channel.
        batch_size: images a step, over all processes; it must divide evenly among them.
        val_batch_size: likewise in evaluation; null for the default: as in training, for maps of classes one a process.
        num_workers: processes that load, for each training process; by default one a core, at most 8.
        on_error: what to do about broken or unfit files: ``"raise"``, or ``"skip"`` and report.
        seed: determines shuffling and augmentation.

    Raises:
        ConfigError: an option has an impossible value.
    """

    size_divisor: int = 32
    """Sides of batches are multiples of it. A task sets its network's here before there are loaders; without a task it
    is that of the published networks."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        image_size: int = 800,
        max_size: int = 1333,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        batch_size: int = 16,
        val_batch_size: int | None = None,
        num_workers: int | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(batch_size, image_size, 1 if val_batch_size is None else val_batch_size) < 1 or (num_workers or 0) < 0:
            raise ConfigError("data.batch_size and data.image_size must be 1 or more, data.num_workers 0 or more")
        if max_size < image_size:
            raise ConfigError(f"data.max_size={max_size} must be at least data.image_size={image_size}")
        self.root = Path(root).absolute()
        self.preprocessing = Preprocessing(
            image_size=image_size,
            crop_pct=1.0,
            interpolation="bilinear",
            mean=tuple(mean),
            std=tuple(std),
            max_size=max_size,
        )
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.val_batch_size = val_batch_size
        self.on_error: Literal["raise", "skip"] = on_error
        self.samples: dict[Part, D] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """By label; known after ``setup``."""
        assert self.samples, "setup() comes first"
        return next(iter(self.samples.values())).class_names

    @property
    def num_classes(self) -> int:
        """Known after ``setup``."""
        return len(self.class_names)

    def setup(self, stage: str) -> None:
        """Opens and checks what a stage ("fit", "validate" or "test") needs and no earlier one did.

        Raises:
            DataError: the data cannot be used; the message names the file and the way out.
        """
        for part in _PARTS.get(stage, ()):
            if part not in self.samples:
                samples = self._open(part)
                if not len(samples) or (part == "train" and len(samples) < self.batch_size):
                    found = f"{len(samples)} image{'s' * (len(samples) != 1)}"
                    raise DataError(f"{samples.name}: {found} do not fill one batch of batch_size={self.batch_size}")
                self.samples[part] = samples

    def train_dataloader(self) -> Loader:
        return self._loader("train")

    def val_dataloader(self) -> Loader:
        return self._loader("val")

    def test_dataloader(self) -> Loader:
        return self._loader("test")

    def default_val_batch_size(self) -> int:
        """Images at once in evaluation, over all processes, unless an option says so."""
        return self.batch_size

    @abstractmethod
    def _open(self, part: Part) -> D:
        """A part of the data, checked."""

    def _kinds(self, samples: D) -> Sequence[int] | None:
        """By index: training pictures of one kind share a batch; None where all have one size by then."""
        return None

    def _loader(self, part: Part) -> Loader:
        samples, training = self.samples[part], part == "train"
        workers = self.num_workers
        if workers is None:
            workers = cores_per_process(self.trainer.num_devices if self.trainer else 1)
        batch_size = self.batch_size if training else self.val_batch_size or self.default_val_batch_size()
        kinds = self._kinds(samples)
        order = EpochBatches(len(samples), batch_size, seed=self.seed, training=training, kinds=kinds)
        options = {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": torch.cuda.is_available()}
        make_batch = partial(collate, divisor=self.size_divisor, training=training)
        return Loader(samples, order, collate=make_batch, **options)
