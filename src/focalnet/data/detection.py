"""Detection data for training: from annotation files and pictures to loaders of batches."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from focalnet.data.check import check_part, decide, find_annotations
from focalnet.data.datasets.collection import Part
from focalnet.data.detection_samples import DetectionDataset, collate
from focalnet.data.detection_transforms import DetectionAugmentation
from focalnet.data.loading import Loader, cores_per_process
from focalnet.data.sampling import EpochBatches
from focalnet.errors import ConfigError, DataError
from focalnet.structures import DetectionBatch, Preprocessing


class DetectionData(LightningDataModule):
    """Loaders of ``structures.DetectionBatch`` for training, validation and test.

    The annotations are in COCO's JSON form; ``focalnet.data.voc`` makes it of Pascal VOC's XML. Without other word,
    a part's file is ``annotations/instances_train.json`` or ``instances_train2017.json``,
    ``train/_annotations.coco.json`` or ``train.json`` (and ``val``, ``test``). Everything is checked before training.

    Args:
        root: the folder of the data set.
        train_annotations: the annotation file for training, relative to the root; default: looked for.
        val_annotations: likewise for validation; the test file's name validates on the test images.
        test_annotations: likewise for test; default: looked for, else the validation part.
        images: the folder or uncompressed tar file of the pictures, relative to the root; default: looked for.
        masks: read segmentations, which every object must then have.
        with_empty: train on pictures without objects, too; the official training leaves them out.
        image_size: short side in pixels of the network's input, in evaluation.
        max_size: most pixels of the long side, in training, too.
        mean: per channel, of values in [0, 1], for normalisation.
        std: per channel.
        augmentation: how training images are varied; the default is the official one.
        batch_size: images a step, over all processes; it must divide evenly among them.
        num_workers: processes that load, for each training process; by default one a core, at most 8.
        on_error: what to do about broken images and unusable annotations: ``"raise"``, or ``"skip"`` and report.
        seed: determines shuffling and augmentation.

    Raises:
        ConfigError: an option has an impossible value.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        train_annotations: str | None = None,
        val_annotations: str | None = None,
        test_annotations: str | None = None,
        images: str | None = None,
        masks: bool = True,
        with_empty: bool = True,
        image_size: int = 800,
        max_size: int = 1333,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        augmentation: DetectionAugmentation = DetectionAugmentation(),  # noqa: B008  # frozen
        batch_size: int = 16,
        num_workers: int | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1 or image_size < 1 or (num_workers or 0) < 0:
            raise ConfigError("data.batch_size and data.image_size must be 1 or more, data.num_workers 0 or more")
        if max_size < image_size:
            raise ConfigError(f"data.max_size={max_size} must be at least data.image_size={image_size}")
        self.root = Path(root).absolute()
        self.annotations: dict[Part, str | None] = {
            "train": train_annotations,
            "val": val_annotations,
            "test": test_annotations,
        }
        self.pictures, self.masks, self.with_empty = images, masks, with_empty
        self.preprocessing = Preprocessing(
            image_size=image_size,
            crop_pct=1.0,
            interpolation="bilinear",
            mean=tuple(mean),
            std=tuple(std),
            max_size=max_size,
        )
        self.augmentation, self.batch_size, self.num_workers = augmentation, batch_size, num_workers
        self.on_error: Literal["raise", "skip"] = on_error
        self.seed = seed
        self.samples: dict[Part, DetectionDataset] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """By label; known after ``setup``."""
        assert self.samples, "setup() comes first"
        return next(iter(self.samples.values())).coco.class_names

    @property
    def num_classes(self) -> int:
        """Known after ``setup``."""
        return len(self.class_names)

    def setup(self, stage: str) -> None:
        """Reads and checks the annotations that a stage ("fit", "validate" or "test") needs and no earlier one did.

        Raises:
            DataError: the data cannot be used; the message names the file, the annotation and the way out.
        """
        parts: dict[str, tuple[Part, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
        for part in parts.get(stage, ()):
            if part not in self.samples:
                self.samples[part] = self._open(part)
        first, *others = self.samples.values()
        for other in others:
            if (other.coco.class_names, other.coco.category_ids) != (first.coco.class_names, first.coco.category_ids):
                raise DataError(f"{other.name}: its categories differ from those of {first.name}; give both the same")

    def train_dataloader(self) -> DataLoader[DetectionBatch]:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[DetectionBatch]:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[DetectionBatch]:
        return self._loader("test")

    def _open(self, part: Part) -> DetectionDataset:
        file = find_annotations(self.root, part, self.annotations[part])
        if file is None and part == "test":
            file = find_annotations(self.root, "val", self.annotations["val"])
        if file is None:
            raise DataError(
                f"{self.root}: no annotation file for {part} there (annotations/instances_{part}.json or "
                f"{part}/_annotations.coco.json); data.{part}_annotations names it"
            )
        training = part == "train"
        checked = check_part(self.root, file, masks=self.masks, images=self.pictures)
        decide(checked, self.on_error)
        samples = DetectionDataset(
            checked.coco,
            checked.pictures,
            self.preprocessing,
            augmentation=self.augmentation if training else None,
            masks=self.masks and training,
            with_empty=self.with_empty or not training,
            seed=self.seed,
            on_error=self.on_error,
        )
        if training and len(samples) < self.batch_size:
            raise DataError(f"{file}: {len(samples)} images do not fill one batch of batch_size={self.batch_size}")
        return samples

    def _loader(self, part: Part) -> Loader:
        samples = self.samples[part]
        workers = self.num_workers
        if workers is None:
            workers = cores_per_process(self.trainer.num_devices if self.trainer else 1)
        order = EpochBatches(len(samples), self.batch_size, seed=self.seed, training=part == "train")
        options = {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": torch.cuda.is_available()}
        return Loader(samples, order, collate=collate, **options)
