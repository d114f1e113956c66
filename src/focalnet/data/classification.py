"""Classification data for training: from a folder, archive or named set to loaders of batches."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from focalnet.card import Preprocessing
from focalnet.data.datasets.classes import read_class_map
from focalnet.data.datasets.collection import Collection, Format, Part, detect
from focalnet.data.datasets.shards import ShardDataset
from focalnet.data.datasets.source import InMemory
from focalnet.data.loading import ImageDataset, Loader, collate, cores_per_process
from focalnet.data.preprocess import eval_transform
from focalnet.data.sampling import EpochBatches
from focalnet.data.transforms import Augmentation
from focalnet.errors import ConfigError, DataError
from focalnet.samples import Batch


class ClassificationData(LightningDataModule):
    """Loaders of ``samples.Batch`` for training, validation and test, and what a model must know of the data.

    Validation takes the split called val, validation, valid, dev or eval; without one, the ``holdout`` part
    of the training images. Test takes the split called test, without one the validation's.

    Args:
        root: a folder of class folders with or without splits, a tar file or a folder of them, a folder of
            Parquet files, or a folder of WebDataset shards; not needed for ``format="digits"``.
        format: which of these it is; ``"auto"`` finds out.
        train_split: name of the training split, where it is not the usual.
        val_split: name of the validation split, likewise; ``"test"`` validates on the test split.
        test_split: name of the test split, likewise.
        holdout: fraction of the training images of each class, in (0, 1), to hold out for validation instead
            of a validation split. The choice does not depend on the seed.
        class_map: a text file with the classes in label order, one a line: the name in the data, then
            optionally a tab and the name to show. WebDataset needs one, for other formats it is the way to
            other labels than the sorted names.
        image_size: side in pixels of the network's input.
        crop_pct: of evaluation, the crop over the resized short side, in (0, 1].
        interpolation: of all resizing.
        mean: per channel, of values in [0, 1], for normalisation.
        std: per channel.
        augmentation: how training images are varied; the default is the paper's.
        batch_size: images a step, over all processes; it must divide evenly among them.
        num_workers: processes that load, for each training process; by default one a core, at most 8.
        on_error: what to do about a broken image: ``"raise"``, or ``"skip"`` and report.
        seed: determines shuffling and augmentation.
        cache_in_memory: decode every image once, at the start, and keep it; for small images.

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
        image_size: int = 224,
        crop_pct: float = 0.875,
        interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic",
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        augmentation: Augmentation = Augmentation(),  # noqa: B008  # frozen
        batch_size: int = 128,
        num_workers: int | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        seed: int = 0,
        cache_in_memory: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1 or image_size < 1 or (num_workers or 0) < 0:
            raise ConfigError("data.batch_size and data.image_size must be 1 or more, data.num_workers 0 or more")
        if not 0 < crop_pct <= 1:
            raise ConfigError(f"data.crop_pct={crop_pct} must be above 0 and at most 1")
        if holdout is not None and not 0 < holdout < 1:
            raise ConfigError(f"data.holdout={holdout} must be a fraction between 0 and 1")
        if root is None and format != "digits":
            raise ConfigError('data.root is missing: the folder with your images (or data.format "digits")')
        self.root = Path(root or "").absolute()
        self.format: Literal["auto"] | Format = format
        self.splits: dict[Part, str | None] = {"train": train_split, "val": val_split, "test": test_split}
        self.holdout, self.class_map = holdout, class_map
        self.preprocessing = Preprocessing(
            image_size=image_size, crop_pct=crop_pct, interpolation=interpolation, mean=tuple(mean), std=tuple(std)
        )
        self.batch_size, self.seed, self.cache_in_memory = batch_size, seed, cache_in_memory
        self.on_error: Literal["raise", "skip"] = on_error
        self.num_workers = num_workers
        self._train_transform = augmentation.build(self.preprocessing)
        self._eval_transform = eval_transform(self.preprocessing)
        self.samples: dict[Part, ImageDataset | ShardDataset] = {}

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
        """Opens what a stage ("fit", "validate" or "test") needs and no earlier one did.

        Raises:
            DataError: the data cannot be used; the message names the folder or file and the way out.
        """
        parts: dict[str, tuple[Part, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
        missing = [part for part in parts.get(stage, ()) if part not in self.samples]
        if not missing:
            return
        kind = detect(self.root) if self.format == "auto" else self.format
        titles = read_class_map(Path(self.class_map)) if self.class_map else None
        collection = Collection(self.root, kind, wanted=self.splits, holdout=self.holdout, titles=titles)
        if stage == "fit" and not (collection.has_splits or self.holdout):
            raise DataError(f"{self.root}: no images to validate on; set data.holdout to 0.1 to hold out 10 %")
        for part in missing:
            self.samples[part] = self._open(collection, part)
        self._check_classes()

    def train_dataloader(self) -> DataLoader[Batch[int]]:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Batch[int]]:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Batch[int]]:
        return self._loader("test")

    def _open(self, collection: Collection, part: Part) -> ImageDataset | ShardDataset:
        training = part == "train"
        transform = self._train_transform if training else self._eval_transform
        options: dict[str, Any] = {"seed": self.seed, "training": training, "on_error": self.on_error}
        if collection.kind == "wds":
            options |= {"batch_size": self.batch_size, "num_workers": self._workers()}
            names = tuple((collection.titles or {}).values())
            if len(names) == 1:
                raise DataError(f'{self.class_map}: only one class ("{names[0]}"), a classifier needs two or more')
            return ShardDataset(collection.shards(part), names, transform, **options)
        source = collection.open(part)
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
            if other.class_names != first.class_names:
                different = sorted(set(first.class_names) ^ set(other.class_names)) or other.class_names
                raise DataError(
                    f'{other.name}: its classes differ from those of {first.name}, e.g. "{different[0]}"; '
                    "give every part the same class folders, or list all classes in a data.class_map"
                )

    def _loader(self, part: Part) -> Loader:
        samples, workers, order = self.samples[part], self._workers(), None
        if isinstance(samples, ShardDataset):
            workers = samples.num_workers
        else:
            order = EpochBatches(len(samples), self.batch_size, seed=self.seed, training=part == "train")
        pin = torch.cuda.is_available()
        return Loader(
            samples, order, collate=collate, num_workers=workers, persistent_workers=workers > 0, pin_memory=pin
        )

    def _workers(self) -> int:
        if self.num_workers is not None:
            return self.num_workers
        return cores_per_process(self.trainer.num_devices if self.trainer else 1)
