"""Panoptic data for training: from annotation files, PNG files of segments and pictures to loaders of batches."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from focalnet.data.check import decide, find_annotations
from focalnet.data.datasets.collection import Part
from focalnet.data.loading import Loader, cores_per_process
from focalnet.data.panoptic_check import check_panoptic
from focalnet.data.panoptic_samples import PanopticDataset, collate
from focalnet.data.panoptic_transforms import PanopticAugmentation
from focalnet.data.sampling import EpochBatches
from focalnet.errors import ConfigError, DataError
from focalnet.structures import PanopticBatch, Preprocessing


class PanopticData(LightningDataModule):
    """Loaders of ``structures.PanopticBatch`` for training, validation and test.

    The annotations are in COCO's panoptic form: a JSON, and a PNG for each image. Without other word, a part's file is
    ``annotations/panoptic_train.json`` or ``panoptic_train2017.json`` (and ``val``, ``test``), and its PNG files are
    in a folder of that name. Labels count from 0: first the things by category id, then the stuff.

    Args:
        root: the folder of the data set.
        train_annotations: the annotation file for training, relative to the root; default: looked for.
        val_annotations: likewise for validation; the test file's name validates on the test images.
        test_annotations: likewise for test; default: looked for, else the validation part.
        images: the folder or uncompressed tar file of the pictures, relative to the root; default: looked for.
        maps: that of the PNG files of segments; default: looked for.
        check: open every PNG before training; false where ``focalnet check-data`` has done it once and for all.
        image_size: short side in pixels of the network's input, in evaluation.
        max_size: most pixels of the long side, in evaluation.
        mean: per channel, of values in [0, 1], for normalisation.
        std: per channel.
        augmentation: how training images are varied, and the size of the result; the default is Mask2Former's.
        batch_size: images a step, over all processes; it must divide evenly among them.
        num_workers: processes that load, for each training process; by default one a core, at most 8.
        on_error: what to do about broken or unfit images: ``"raise"``, or ``"skip"`` and report.
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
        maps: str | None = None,
        check: bool = True,
        image_size: int = 800,
        max_size: int = 1333,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        augmentation: PanopticAugmentation = PanopticAugmentation(),  # noqa: B008  # frozen
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
        self.pictures, self.maps, self.check = images, maps, check
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
        self.samples: dict[Part, PanopticDataset] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """By label; known after ``setup``."""
        assert self.samples, "setup() comes first"
        return next(iter(self.samples.values())).class_names

    @property
    def num_classes(self) -> int:
        """Known after ``setup``."""
        return len(self.class_names)

    @property
    def num_things(self) -> int:
        """So many of the first classes are objects; known after ``setup``."""
        assert self.samples, "setup() comes first"
        return next(iter(self.samples.values())).annotated.num_things

    def setup(self, stage: str) -> None:
        """Reads and checks the annotations that a stage ("fit", "validate" or "test") needs and no earlier one did.

        Raises:
            DataError: the data cannot be used; the message names the file, the image and the way out.
        """
        parts: dict[str, tuple[Part, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
        for part in parts.get(stage, ()):
            if part not in self.samples:
                self.samples[part] = self._open(part)
        (name, first), *others = ((s.name, s.annotated) for s in self.samples.values())
        classes = first.class_names, first.category_ids, first.num_things
        for other, annotated in others:
            if (annotated.class_names, annotated.category_ids, annotated.num_things) != classes:
                raise DataError(f"{other}: its categories differ from those of {name}; give both the same")

    def train_dataloader(self) -> DataLoader[PanopticBatch]:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[PanopticBatch]:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[PanopticBatch]:
        return self._loader("test")

    def _open(self, part: Part) -> PanopticDataset:
        file = find_annotations(self.root, part, self.annotations[part], "panoptic")
        if file is None and part == "test":
            file = find_annotations(self.root, "val", self.annotations["val"], "panoptic")
        if file is None:
            raise DataError(
                f"{self.root}: no annotation file for {part} there (annotations/panoptic_{part}.json); "
                f"data.{part}_annotations names it"
            )
        checked = check_panoptic(self.root, file, images=self.pictures, maps=self.maps, look=self.check)
        decide(checked, self.on_error)
        training = part == "train"
        samples = PanopticDataset(
            checked.annotated,
            checked.pictures,
            checked.maps,
            self.preprocessing,
            augmentation=self.augmentation if training else None,
            seed=self.seed,
            on_error=self.on_error,
        )
        if not len(samples) or (training and len(samples) < self.batch_size):
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
