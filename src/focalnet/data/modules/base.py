"""What the data modules of all tasks share: splits are opened when a stage needs them, and their loaders."""

from __future__ import annotations

import logging
import multiprocessing
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningDataModule

from focalnet.card import Preprocessing
from focalnet.data.dataset import Samples
from focalnet.data.formats.coco import AnnotationFormat
from focalnet.data.formats.image_entries import Id
from focalnet.data.formats.sets import Annotations, find_split
from focalnet.data.loader import EpochBatches, Loader, collate, cores_per_process
from focalnet.data.readers.collection import Split
from focalnet.data.readers.webdataset import ShardDataset
from focalnet.errors import ConfigError, DataError
from focalnet.samples import Batch, pad_to

logger = logging.getLogger(__name__)

NO_VALIDATION = "no images to validate on; set data.holdout to 0.1 to hold out 10 %"
AUTOMATIC_HOLDOUT = 0.2  # of training images, where there are no others to validate on
HOLD_OUT = "data.holdout"
#: What is said where that is done, and where all images are evaluated instead.
SAYS_HELD_OUT = (
    "has no validation split: 20 % of its images are held out for validation, the same in every run; "
    f"{HOLD_OUT} chooses another share"
)
HOLDS_TRAINING_IMAGES = (
    "has no splits, so the images to evaluate are those of training, too; "
    f"{HOLD_OUT} {AUTOMATIC_HOLDOUT} evaluates those that training holds out"
)

#: What each stage of Lightning needs, and one of ours.
SPLITS: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "calibrate": ("train",),
}

D = TypeVar("D", bound=Samples[Any, Any])
T = TypeVar("T")
S = TypeVar("S", bound="Samples[Any, Any] | ShardDataset")


class DataModule(LightningDataModule, ABC, Generic[S]):
    """Loaders of ``samples.Batch`` for training, validation and test, and what a model must know of the data."""

    size_divisor: int = 1
    """Sides of batches are multiples of it. A task sets its network's here before there are loaders."""
    class_order: tuple[str, ...] = ()
    """Names of the classes of a network that is to be measured, in its order; set before ``setup``. Images and objects
    of classes with the same names are labeled in this order, whatever their order or ids in the data."""

    def __init__(self, *, batch_size: int, num_workers: int | None, seed: int) -> None:
        super().__init__()
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.samples: dict[Split, S] = {}
        self._train_loader: Loader | None = None
        self._resume: dict[str, Any] | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """By label; known after ``setup``."""
        assert self.samples, "setup() comes first"
        return next(iter(self.samples.values())).class_names

    @property
    def category_ids(self) -> tuple[Id, ...]:
        """By label, the numbers of the classes in annotation files; empty where they have none."""
        return ()

    @property
    def num_classes(self) -> int:
        """Known after ``setup``."""
        return len(self.class_names)

    def train_dataloader(self) -> Loader:
        self._train_loader = self._loader("train")
        if self._resume is not None:
            self._train_loader.load_state_dict(self._resume)
        return self._train_loader

    def val_dataloader(self) -> Loader:
        return self._loader("val")

    def test_dataloader(self) -> Loader:
        return self._loader("test")

    def state_dict(self) -> dict[str, Any]:
        """How far the training images of this epoch have been given; Lightning itself restores that too late."""
        return {} if self._train_loader is None else {"train": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resume = state_dict["train"]
        if self._train_loader is not None:
            self._train_loader.load_state_dict(state_dict["train"])

    @abstractmethod
    def has_test_split(self) -> bool:
        """Whether there are images for a test that are neither trained nor validated on."""

    def largest_batch(self, size: int) -> Batch[Any] | None:
        """A training batch of the largest images there can be, with the most objects; None of a stream.

        Args:
            size: number of images; known after ``setup``.
        """
        samples = self.samples["train"]
        if isinstance(samples, ShardDataset):
            return None
        order = self._most_demanding(samples)
        indices = [order[i % len(order)] for i in range(size)]
        batch = collate([samples[index] for index in indices], divisor=self.size_divisor, training=True)
        if (largest := self._largest_size()) is None:
            return batch
        if batch.images.shape[-2] > batch.images.shape[-1]:
            largest = largest[::-1]
        height, width = (
            max(-(-side // self.size_divisor) * self.size_divisor, now)
            for side, now in zip(largest, batch.images.shape[-2:], strict=True)
        )
        targets: Any = [target.padded((height, width)) for target in batch.targets]
        return replace(batch, images=pad_to(batch.images, (height, width)), targets=targets)

    def _most_demanding(self, samples: Any) -> Sequence[int]:
        """Indices of training images, those that need the most memory first."""
        return range(len(samples))

    def _largest_size(self) -> tuple[int, int] | None:
        """Height and width of the largest training image, lying; None where all have one size."""
        return None

    def _say_trained_on(self, samples: Samples[Any, Any]) -> None:
        """Warns of images to measure with that are trained on, too."""
        trained: Any = self.samples["train"]
        known = {os.path.normpath(trained.path(index)) for index in range(len(trained))}
        if shared := sum(os.path.normpath(samples.path(index)) in known for index in range(len(samples))):
            text = "%s: %d of its %d images are those of training, too: metrics will be too good"
            logger.warning(text, samples.name, shared, len(samples))

    def eval_batch_size(self) -> int:
        """Images at once in evaluation, over all processes."""
        return self.batch_size

    def _groups(self, samples: S) -> Sequence[int] | None:
        """By index: training images of one group share a batch; None where all have one size by then."""
        return None

    def _balanced_labels(self, samples: S) -> npt.NDArray[Any] | None:
        """The classes of training images, where all are to be drawn equally often (``balanced_order``); else None."""
        return None

    def _workers(self) -> int:
        if self.num_workers is not None:
            return self.num_workers
        return cores_per_process(self.trainer.num_devices if self.trainer else 1)

    def _loader(self, split: Split) -> Loader:
        samples, training, workers, order = self.samples[split], split == "train", self._workers(), None
        if isinstance(samples, ShardDataset):
            workers = samples.num_workers
        else:
            batch_size = self.batch_size if training else self.eval_batch_size()
            groups, labels = self._groups(samples), self._balanced_labels(samples) if training else None
            more: dict[str, Any] = {"training": training, "groups": groups, "labels": labels}
            order = EpochBatches(len(samples), batch_size, seed=self.seed, **more)
        # A forked worker shares the memory of a process that trains on, and soon holds a copy: it does not stay then.
        stays = workers > 0 and (training or multiprocessing.get_start_method() != "fork")
        options = {"num_workers": workers, "persistent_workers": stays, "pin_memory": torch.cuda.is_available()}
        make_batch = partial(collate, divisor=self.size_divisor, training=training)
        return Loader(samples, order, collate=make_batch, **options)


class DensePredictionData(DataModule[D]):
    """Loaders of batches for detection and segmentation.

    Args:
        root: the folder of the data set.
        image_size: short side in pixels of the network's input, in evaluation.
        max_size: most pixels of the long side.
        mean: per channel, of values in [0, 1], for normalization.
        std: per channel.
        batch_size: images a step, over all processes; it must divide evenly among them.
        val_batch_size: likewise in evaluation; null for the default: as in training, for label maps one a process.
        num_workers: processes that load, for each training process; by default one a core, at most 8.
        on_error: what to do about broken or unfit files: ``"raise"``, or ``"skip"`` and report.
        seed: determines shuffling and augmentation.

    Raises:
        ConfigError: an option has an impossible value.
    """

    size_divisor: int = 32
    """As the published networks'; see ``DataModule``."""

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
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        if min(batch_size, image_size, 1 if val_batch_size is None else val_batch_size) < 1 or (num_workers or 0) < 0:
            raise ConfigError("data.batch_size and data.image_size must be 1 or more, data.num_workers 0 or more")
        if max_size < image_size:
            raise ConfigError(f"data.max_size={max_size} must be at least data.image_size={image_size}")
        if not os.fspath(root):
            raise ConfigError('data.root is empty, which is not the current folder (that is "."): name the folder')
        self.root = Path(root).absolute()
        self.preprocessing = Preprocessing(
            image_size=image_size,
            crop_pct=1.0,
            interpolation="bilinear",
            mean=tuple(mean),
            std=tuple(std),
            max_size=max_size,
        )
        self.val_batch_size = val_batch_size
        self.on_error: Literal["raise", "skip"] = on_error

    def setup(self, stage: str) -> None:
        """Opens and checks what a stage ("fit", "validate" or "test") needs and no earlier one did.

        Raises:
            DataError: the data cannot be used; the message names the file and the way out.
        """
        for split in SPLITS.get(stage, ()):
            if split not in self.samples:
                samples = self._open(split)
                if not len(samples) or (split == "train" and len(samples) < self.batch_size):
                    found = f"{len(samples)} image{'s' * (len(samples) != 1)}"
                    raise DataError(f"{samples.name}: {found} do not fill one batch of batch_size={self.batch_size}")
                self.samples[split] = samples
                if split != "train" and "train" in self.samples:
                    self._say_trained_on(samples)

    def eval_batch_size(self) -> int:
        return self.val_batch_size or self.default_val_batch_size()

    def default_val_batch_size(self) -> int:
        """Images at once in evaluation, over all processes, unless an option says so."""
        return self.batch_size

    @abstractmethod
    def _open(self, split: Split) -> D:
        """A split of the data, checked."""


class AnnotatedData(DensePredictionData[D]):
    """Loaders of batches whose splits have an annotation file each.

    Args:
        root: the folder of the data set.
        train_annotations: the annotation file for training, relative to the root; default: looked for.
        val_annotations: likewise for validation; the test file's name validates on the test images.
        test_annotations: likewise for test; default: looked for, else the validation split.
        images: the folder or uncompressed tar file of the images, relative to the root; default: looked for.
        holdout: share of the training images to validate on, in (0, 1), instead of a split; default: 0.2 where there
            are but training images. The choice does not depend on the seed.
        kwargs: those of ``DensePredictionData``.

    Raises:
        ConfigError: an option has an impossible value.
    """

    format: ClassVar[AnnotationFormat]
    usual: ClassVar[str]
    """Where a split's file is looked for first, with ``{split}`` for its name."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        train_annotations: str | None = None,
        val_annotations: str | None = None,
        test_annotations: str | None = None,
        images: str | None = None,
        holdout: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        if holdout is not None and not 0 < holdout < 1:
            raise ConfigError(f"data.holdout={holdout} must be a fraction between 0 and 1")
        self.annotations: dict[Split, str | None] = {
            "train": train_annotations,
            "val": val_annotations,
            "test": test_annotations,
        }
        self.images, self.holdout = images, holdout
        self._trains = False
        self._found: dict[Split, Annotations | None] = {}

    def setup(self, stage: str) -> None:
        self._trains |= stage == "fit"
        super().setup(stage)
        first, *others = self.samples.values()
        for other in others:
            if self._categories(other) != self._categories(first):
                raise DataError(f"{other.name}: its categories differ from those of {first.name}; give both the same")

    def has_test_split(self) -> bool:
        test, val = self._own("test"), self._own("val")
        held_out = self._held_out() is not None
        return test is not None and (held_out or val is None or (test.path, test.split) != (val.path, val.split))

    @property
    def category_ids(self) -> tuple[Id, ...]:
        """By label, the numbers of the classes in the annotation files; known after ``setup``."""
        assert self.samples, "setup() comes first"
        return self._category_ids(next(iter(self.samples.values())))

    @abstractmethod
    def _category_ids(self, samples: D) -> tuple[Id, ...]:
        """By label."""

    @abstractmethod
    def _categories(self, samples: D) -> object:
        """What must be the same in all splits."""

    def _find(self, split: Split) -> Annotations | None:
        if split not in self._found:
            self._found[split] = find_split(self.root, split, self.annotations[split], self.format)
        return self._found[split]

    def _own(self, split: Split) -> Annotations | None:
        """The annotations of a split, if they are of no other, too."""
        found = self._find(split)
        return None if found is None or found.whole else found

    def _annotations(self, split: Split) -> Annotations:
        """The annotations of a split; those of ``val`` where there are none of ``test``.

        Raises:
            DataError: there are none.
        """
        if split == "test" and self._own("test") is None:
            return self._annotations("val")
        found = self._own(split)
        if split == "val" and self._held_out() is not None:
            found = self._find("train")
        elif found is None and self._own("train") is None:
            found = self._find(split)
            if found is not None and split == "val":
                logger.warning("%s: %s", self.root, HOLDS_TRAINING_IMAGES)
        if found is None:
            ways_out = f"; {HOLD_OUT} 0.2 holds out a fifth of the training images" * (split != "train")
            raise DataError(
                f"{self.root}: no annotation file for {split} there ({self.usual.format(split=split)}); "
                f"data.{split}_annotations names it{ways_out}"
            )
        return found

    def _held_out(self) -> float | None:
        """The share of the training images to validate on: none where there is a validation split.

        It is a choice of ours where there are but training images, in evaluation only if they are called so.
        """
        if self.holdout is not None:
            return self.holdout
        if self._own("val") is not None or self._own("test") is not None or self._find("train") is None:
            return None
        return AUTOMATIC_HOLDOUT if self._own("train") is not None or self._trains else None

    def _part(self, images: list[T], split: Split) -> list[T]:
        """The images of a split, of those that its annotations list."""
        if split == "test" and self._own("test") is None:
            split = "val"
        fraction = self._held_out() if split != "test" else None
        if fraction is None:
            return images
        if self.holdout is None and split == "val":
            logger.warning("%s: %s", self.root, SAYS_HELD_OUT)
        if len(images) < 2:
            raise DataError(f"{self.root}: {len(images)} image; holding out some needs 2 or more")
        held = held_out(len(images), fraction)
        return [image for place, image in enumerate(images) if (place in held) == (split == "val")]


def held_out(count: int, fraction: float) -> set[int]:
    """The places of so many images that are held out, at least one and never all; no seed changes them."""
    order = np.random.default_rng(0).permutation(count).tolist()
    return set(order[: min(max(1, round(fraction * count)), count - 1)])
