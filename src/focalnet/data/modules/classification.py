"""Classification data for training: from a folder, archive or named set to loaders of batches."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from focalnet.card import Preprocessing
from focalnet.data.augment import Augmentation
from focalnet.data.dataset import ImageDataset
from focalnet.data.modules.base import (
    AUTOMATIC_HOLDOUT,
    HOLDS_TRAINING_IMAGES,
    NO_VALIDATION,
    SAYS_HELD_OUT,
    SPLITS,
    DataModule,
)
from focalnet.data.preprocess import eval_transform
from focalnet.data.readers.classes import read_class_map
from focalnet.data.readers.collection import Collection, Format, Split, detect
from focalnet.data.readers.source import InMemory, TooFewImages, other_classes
from focalnet.data.readers.webdataset import ShardDataset
from focalnet.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


def check_options(batch_size: int, num_workers: int | None, holdout: float | None) -> None:
    """Raises ConfigError for numbers that cannot be."""
    if batch_size < 1 or (num_workers or 0) < 0:
        raise ConfigError("data.batch_size and data.image_size must be 1 or more, data.num_workers 0 or more")
    if holdout is not None and not 0 < holdout < 1:
        raise ConfigError(f"data.holdout={holdout} must be a fraction between 0 and 1")


def cropped(
    image_size: int | tuple[int, int],
    crop_pct: float,
    fit: str,
    interpolation: str,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Preprocessing:
    """The preprocessing of a classifier, by its options.

    Raises:
        ConfigError: an option has an impossible value.
    """
    sides = (image_size,) if isinstance(image_size, int) else tuple(image_size)
    if min(sides) < 1 or len(sides) > 2:
        raise ConfigError("data.batch_size and data.image_size must be 1 or more, data.num_workers 0 or more")
    if not 0 < crop_pct <= 1:
        raise ConfigError(f"data.crop_pct={crop_pct} must be above 0 and at most 1")
    return Preprocessing(
        image_size=image_size if isinstance(image_size, int) else (sides[0], sides[-1]),
        crop_pct=crop_pct,
        fit=fit,
        interpolation=interpolation,
        mean=tuple(mean),
        std=tuple(std),
    )


class ClassificationData(DataModule["ImageDataset | ShardDataset"]):
    """Loaders of batches of labeled images.

    Validation takes the split called val, validation, valid, dev or eval; without one, the ``holdout`` part
    of the training images, a fifth where there are no others. Test takes the split called test, without one the
    validation's.

    Args:
        root: a folder of class folders with or without splits, a tar file or a folder of them, a folder of
            Parquet files, or a folder of WebDataset shards; not needed for ``format="digits"``.
        format: which of these it is; ``"auto"`` finds out.
        train_split: name of the training split, where it is not the usual.
        val_split: name of the validation split, likewise; ``"test"`` validates on the test split.
        test_split: name of the test split, likewise.
        holdout: fraction of the training images of each class, in (0, 1), to hold out for validation instead
            of a validation split; default: 0.2 where there are but training images. The choice does not depend on the
            seed.
        class_map: a text file with the classes in label order, one a line: the name in the data, then
            optionally a tab and the name to show. WebDataset needs one, for other formats it is the way to
            other labels than the sorted names.
        image_size: side in pixels of the network's input, or its height and width.
        crop_pct: of evaluation, the crop over the resized short side, in (0, 1].
        fit: of evaluation: ``"crop"`` keeps the aspect ratio, ``"squash"`` resizes to the shape of the crop.
        interpolation: of all resizing.
        mean: per channel, of values in [0, 1], for normalization.
        std: per channel.
        augmentation: how training images are varied; the default is the paper's.
        batch_size: images a step, over all processes; it must divide evenly among them.
        num_workers: processes that load, for each training process; by default one a core, at most 8.
        on_error: what to do about a broken image: ``"raise"``, or ``"skip"`` and report.
        seed: determines shuffling and augmentation.
        cache_in_memory: decode every image once, at the start, and keep it; for small images.
        sampling: ``"shuffled"``: every training image once an epoch. ``"balanced"``: every class equally often, images
            of small classes several times; an epoch has as many images.

    Raises:
        ConfigError: an option has an impossible value.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        format: Literal["auto", "folder", "tar", "parquet", "wds", "digits"] = "auto",
        train_split: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        holdout: float | None = None,
        class_map: str | os.PathLike[str] | None = None,
        image_size: int | tuple[int, int] = 224,
        crop_pct: float = 0.875,
        fit: Literal["crop", "squash"] = "crop",
        interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic",
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        augmentation: Augmentation = Augmentation(),  # noqa: B008  # frozen
        batch_size: int = 128,
        num_workers: int | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        seed: int = 0,
        cache_in_memory: bool = False,
        sampling: Literal["shuffled", "balanced"] = "shuffled",
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.preprocessing = cropped(image_size, crop_pct, fit, interpolation, mean, std)
        check_options(batch_size, num_workers, holdout)
        if root in (None, "") and format != "digits":
            raise ConfigError('data.root is missing: the folder with your images (or data.format "digits")')
        self.root = Path(root or "").absolute()
        self.format: Literal["auto"] | Format = format
        self.splits: dict[Split, str | None] = {"train": train_split, "val": val_split, "test": test_split}
        self.holdout, self.class_map = holdout, class_map
        self.cache_in_memory, self.sampling = cache_in_memory, sampling
        self._trains = False
        self.on_error: Literal["raise", "skip"] = on_error
        self._train_transform = augmentation.build(self.preprocessing)
        self._eval_transform = eval_transform(self.preprocessing)

    def setup(self, stage: str) -> None:
        """Opens what a stage ("fit", "validate" or "test") needs and no earlier one did.

        Raises:
            DataError: the data cannot be used; the message names the folder or file and the way out.
        """
        missing = [split for split in SPLITS.get(stage, ()) if split not in self.samples]
        if not missing:
            return
        collection = self._collection()
        format = collection.format
        self._trains |= stage == "fit"
        if not (collection.has_splits or self.holdout or self._trains):
            logger.warning("%s: %s", self.root, HOLDS_TRAINING_IMAGES)
        elif not self.holdout and format not in ("wds", "digits") and collection.holds_only_training:
            collection.holdout = AUTOMATIC_HOLDOUT
            logger.warning("%s: %s", self.root, SAYS_HELD_OUT)
        elif not (collection.has_splits or self.holdout):
            raise DataError(f"{self.root}: {NO_VALIDATION}")
        for split in missing:
            self.samples[split] = self._open(collection, split)
        self._check_classes()

    def class_counts(self) -> torch.Tensor | None:
        """Training images of each class, ``(N,)``; None of shards, which do not say. Known after ``setup``."""
        samples = self.samples["train"]
        if isinstance(samples, ShardDataset):
            return None
        return torch.from_numpy(samples.source.labels).bincount(minlength=self.num_classes)

    def _balanced_labels(self, samples: ImageDataset | ShardDataset) -> npt.NDArray[np.int64] | None:
        if self.sampling == "shuffled":
            return None
        if isinstance(samples, ShardDataset):
            raise ConfigError("data.sampling=balanced is not for WebDataset shards, which are read in a row")
        return samples.source.labels

    def has_test_split(self) -> bool:
        collection = self._collection()
        if not collection.has("test"):
            return False
        return (
            bool(self.holdout) or not collection.has("val") or collection.name_of("test") != collection.name_of("val")
        )

    def _collection(self) -> Collection:
        format = detect(self.root) if self.format == "auto" else self.format
        titles = read_class_map(Path(self.class_map)) if self.class_map else None
        return Collection(self.root, format, wanted=self.splits, holdout=self.holdout, titles=titles)

    def _open(self, collection: Collection, split: Split) -> ImageDataset | ShardDataset:
        training = split == "train"
        transform = self._train_transform if training else self._eval_transform
        options: dict[str, Any] = {"seed": self.seed, "training": training, "on_error": self.on_error}
        if collection.format == "wds":
            options |= {"batch_size": self.batch_size, "num_workers": self._workers()}
            names = tuple((collection.titles or {}).values())
            if len(names) == 1:
                raise DataError(f'{self.class_map}: only one class ("{names[0]}"), a classifier needs two or more')
            return ShardDataset(collection.shards(split), names, transform, **options)
        try:
            source = collection.open(split)
        except TooFewImages as error:
            if self.holdout:
                raise
            why = f"no val split; it has {', '.join(collection.splits)}" if collection.has_splits else NO_VALIDATION
            way_out = "; set data.holdout, or data.val_split to a split" * collection.has_splits
            raise DataError(f"{self.root}: {why}{way_out}: {error}") from error
        source.number_as(self.class_order)
        if training and (source.labels == source.labels[0]).all():
            raise DataError(
                f'{source.name}: all images are of one class ("{source.class_names[source.labels[0]]}"), a classifier '
                "needs images of two or more"
            )
        if training and len(source) < self.batch_size:
            raise DataError(
                f"{source.name}: {len(source)} images do not fill one batch of batch_size={self.batch_size}"
            )
        return ImageDataset(InMemory(source) if self.cache_in_memory else source, transform, **options)

    def _check_classes(self) -> None:
        first, *others = self.samples.values()
        for other in others:
            if why := other_classes(first, other):
                raise DataError(f"{other.name}: {why}")
