"""Data of images that can have several classes, for training: from a table of labels (CSV) to loaders of batches."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from focalnet.data.augment import Augmentation
from focalnet.data.dataset import MultiLabelDataset
from focalnet.data.images import SUFFIXES
from focalnet.data.modules.base import AUTOMATIC_HOLDOUT, SAYS_HELD_OUT, SPLITS, DataModule
from focalnet.data.modules.classification import check_options, cropped
from focalnet.data.preprocess import eval_transform
from focalnet.data.readers.classes import class_name, read_class_map
from focalnet.data.readers.collection import SYNONYMS, Split, check_exists
from focalnet.data.readers.image_files import ImageFiles, find_images, other_splits
from focalnet.data.readers.label_table import Columns, LabelTable, ReportLine, has_image_suffix, read_label_table
from focalnet.errors import ConfigError, DataError, did_you_mean

logger = logging.getLogger(__name__)

#: Names of a table within the folder of its split.
IN_FOLDER = ("_classes.csv", "labels.csv")


class MultiLabelData(DataModule[MultiLabelDataset]):
    """Loaders of batches of images with any number of classes, which tables of labels (CSV) name.

    A table has a row for each image: the file, and either all labels in one column or a column of 0 and 1 for each
    class. Validation takes the table ``val.csv``; without one, the ``holdout`` part of the training images.

    Args:
        root: the folder of the data set.
        train_labels: the table for training, relative to the root; default: ``train.csv``, ``train/_classes.csv``,
            ``train/labels.csv``, ``labels.csv``, or the only CSV file there.
        val_labels: likewise for validation; default: ``val.csv``, ``val/_classes.csv`` or ``val/labels.csv``, or the
            same of ``valid``, ``validation``, ``dev``, ``eval``.
        test_labels: likewise for test.
        images: the folder or uncompressed tar file of the images, relative to the root; default: looked for.
        holdout: share of the training images to validate on, in (0, 1), instead of a split; default: 0.2 where there
            is no table for validation. The choice does not depend on the seed.
        image_column: name of the column with the files of the images; their suffix may be missing. Default: the only
            column of file names, or the only one that is called image, file name, path or the like.
        label_column: name of the column with all labels of an image; default: the only other one.
        class_columns: names of the columns of 0 and 1, one for each class; default: all others.
        label_delimiter: between labels in one cell; default: the one of ``| ; ,`` that is found there.
        class_map: a text file with the classes in label order, one a line: the name in the data, then optionally a tab
            and the name to show. Default: the columns in their order, or the sorted labels.
        image_size: side in pixels of the network's input, or its height and width.
        crop_pct: of evaluation, the crop over the resized short side, in (0, 1].
        fit: of evaluation: ``"crop"`` keeps the aspect ratio, ``"squash"`` resizes to the shape of the crop.
        interpolation: of all resizing.
        mean: per channel, of values in [0, 1], for normalization.
        std: per channel.
        augmentation: how training images are varied; crops that leave little of an image lose some of its classes.
        batch_size: images a step, over all processes; it must divide evenly among them.
        num_workers: processes that load, for each training process; by default one a core, at most 8.
        on_error: what to do about a broken or missing image: ``"raise"``, or ``"skip"`` and report.
        seed: determines shuffling and augmentation.
        cache_in_memory: decode every image once, at the start, and keep it; for small images.
        sampling: ``"shuffled"``: every training image once an epoch. ``"balanced"``: every class, and images of no
            class, equally often, images of rare classes several times; an epoch has as many images.

    Raises:
        ConfigError: an option has an impossible value.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        train_labels: str | None = None,
        val_labels: str | None = None,
        test_labels: str | None = None,
        images: str | None = None,
        holdout: float | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        class_columns: list[str] | None = None,
        label_delimiter: str | None = None,
        class_map: str | os.PathLike[str] | None = None,
        image_size: int | tuple[int, int] = 224,
        crop_pct: float = 0.875,
        fit: Literal["crop", "squash"] = "crop",
        interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic",
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        augmentation: Augmentation = Augmentation(scale=(0.5, 1.0)),  # noqa: B008  # frozen
        batch_size: int = 64,
        num_workers: int | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        seed: int = 0,
        cache_in_memory: bool = False,
        sampling: Literal["shuffled", "balanced"] = "shuffled",
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.preprocessing = cropped(image_size, crop_pct, fit, interpolation, mean, std)
        check_options(batch_size, num_workers, holdout)
        if label_column is not None and class_columns is not None:
            raise ConfigError("give one of data.label_column (all labels) and data.class_columns (0 and 1 for each)")
        if label_delimiter is not None and (class_columns is not None or not label_delimiter):
            raise ConfigError('data.label_delimiter is what is between two labels of data.label_column, as in "|"')
        if class_columns is not None and not class_columns:
            raise ConfigError("data.class_columns names no column")
        self.root = Path(root).absolute()
        self.tables: dict[Split, str | None] = {"train": train_labels, "val": val_labels, "test": test_labels}
        self.images, self.holdout, self.class_map = images, holdout, class_map
        self.columns = Columns(
            image=None if image_column is None else class_name(image_column),
            label=None if label_column is None else class_name(label_column),
            classes=None if class_columns is None else tuple(map(class_name, class_columns)),
            delimiter=label_delimiter,
        )
        self.on_error: Literal["raise", "skip"] = on_error
        self.cache_in_memory, self.sampling = cache_in_memory, sampling
        self._train_transform = augmentation.build(self.preprocessing)
        self._eval_transform = eval_transform(self.preprocessing)
        self._titles: dict[str, str] | None = None
        self._read: dict[Path, LabelTable] = {}
        self._whole: dict[Path, tuple[list[str], ImageFiles, Tensor]] = {}

    def setup(self, stage: str) -> None:
        """Opens what a stage ("fit", "validate" or "test") needs and no earlier one did.

        Raises:
            DataError: the data cannot be used; the message names the file and line, and the way out.
        """
        check_exists(self.root)
        for split in SPLITS.get(stage, ()):
            if split in self.samples:
                continue
            samples = self._open(split)
            if split == "train":
                self._check_training(samples)
            self.samples[split] = samples
            if split != "train" and "train" in self.samples:
                self._say_trained_on(samples)

    def found(self) -> dict[Split, Path]:
        """The table of each split that has one.

        Raises:
            DataError: one that an option names does not exist.
        """
        found = {split: self.table_file(split) for split in get_args(Split)}
        return {split: file for split, file in found.items() if file is not None}

    def label_counts(self) -> tuple[Tensor, int]:
        """Training images with each class, ``(N,)``, and of all; known after ``setup``."""
        targets = self.samples["train"].targets
        return targets.sum(0), len(targets)

    def _balanced_labels(self, samples: MultiLabelDataset) -> npt.NDArray[np.bool_] | None:
        return samples.targets.numpy() > 0 if self.sampling == "balanced" else None

    def has_test_split(self) -> bool:
        test = self.table_file("test")
        return test is not None and test != self.table_file("val")

    def _open(self, split: Split) -> MultiLabelDataset:
        file = self.table_file(split)
        if split == "test" and file is None:
            return self._open("val")
        held_out = split != "test" and (self.holdout is not None or self.table_file("val") is None)
        if held_out or file is None:
            file = self.training_file()
        names, images, targets = self._images_of(file)
        name = str(file)
        if held_out:
            if self.holdout is None and split == "val":
                logger.warning("%s: %s", self.root, SAYS_HELD_OUT)
            mask = held_out_images(targets.numpy() > 0, self.holdout or AUTOMATIC_HOLDOUT)
            chosen = np.flatnonzero(mask if split == "val" else ~mask).tolist()
            names, targets = [names[index] for index in chosen], targets[chosen]
            name += " (held out)" if split == "val" else " (training part)"
        if not names:
            raise DataError(f"{name}: no images there")
        training = split == "train"
        transform = self._train_transform if training else self._eval_transform
        shown = tuple(self.classes(file).values())
        return MultiLabelDataset(
            name,
            names,
            images,
            targets,
            shown,
            transform,
            seed=self.seed,
            training=training,
            on_error=self.on_error,
            in_memory=self.cache_in_memory,
        )

    def _check_training(self, samples: MultiLabelDataset) -> None:
        if len(samples) < self.batch_size:
            raise DataError(
                f"{samples.name}: {len(samples)} images do not fill one batch of batch_size={self.batch_size}"
            )
        absent = [name for name, count in zip(samples.class_names, samples.targets.sum(0), strict=True) if not count]
        if len(absent) == len(samples.class_names):
            raise DataError(f"{samples.name}: no image has any class, so there is nothing to learn")
        if absent:
            logger.warning("%s: no image has the class %s", samples.name, ", ".join(absent[:5]))

    def training_file(self) -> Path:
        """The table for training.

        Raises:
            DataError: there is none, or it is not clear which one it is.
        """
        file = self.table_file("train")
        if file is None:
            found = ", ".join(path.name for path in sorted(self.root.glob("*.csv"))[:5]) or "no CSV file"
            raise DataError(
                f"{self.root}: which table has the labels for training? There is {found}; data.train_labels names it"
            )
        return file

    def table_file(self, split: Split) -> Path | None:
        """The table of a split; None if there is none.

        Raises:
            DataError: the one that an option names does not exist.
        """
        if (wanted := self.tables[split]) is not None:
            if not (self.root / wanted).is_file():
                raise DataError(f"{self.root / wanted}: no such file (data.{split}_labels)")
            return self.root / wanted
        places = [place for name in SYNONYMS[split] for place in (f"{name}.csv", *(f"{name}/{f}" for f in IN_FOLDER))]
        if split == "train":
            places += IN_FOLDER
        found = next((self.root / place for place in places if (self.root / place).is_file()), None)
        only = sorted(self.root.glob("*.csv")) if split == "train" and found is None else []
        return only[0] if len(only) == 1 else found

    def table(self, file: Path, report: ReportLine | None = None) -> LabelTable:
        """A table; all are read alike, as that for training shows. ``report`` as for ``read_label_table``."""
        if file not in self._read:
            first, columns = self.table_file("train"), self.columns
            if first is not None and first != file:  # its columns of classes are to be compared, not assumed
                columns = replace(self.table(first).columns, classes=columns.classes)
            self._read[file] = read_label_table(file, columns, list(self._map()), report)
        return self._read[file]

    def _map(self) -> dict[str, str]:
        """What the class map says: name to show by name in the data; empty without one."""
        if self._titles is None:
            titles = read_class_map(Path(self.class_map)) if self.class_map else {}
            self._titles = {class_name(name): title for name, title in titles.items()}
        return self._titles

    def classes(self, file: Path) -> dict[str, str]:
        """The classes in label order, name to show by name in the data: of the class map, or the training table.

        A network that is measured has its own order, and may know more classes than the data have.
        """
        classes = self._map()
        if not classes:
            source = self.table(self.table_file("train") or file)
            classes = {name: name for name in source.classes}
        if not classes:
            raise DataError(f"{file}: no image has any class; list the classes in a data.class_map")
        if self.class_order:
            names = {title: name for name, title in classes.items()}
            if odd := [title for title in names if title not in self.class_order]:
                raise DataError(
                    f'{file}: the weights do not know the class "{odd[0]}"{did_you_mean(odd[0], self.class_order)}; '
                    "a data.class_map renames classes"
                )
            classes = {names.get(title, title): title for title in self.class_order}
        return classes

    def _images_of(self, file: Path) -> tuple[list[str], ImageFiles, Tensor]:
        """The files of a table, where they are, and their targets ``(M, N)``."""
        if file not in self._whole:
            table, classes = self.table(file), list(self.classes(file))
            label_of = {name: label for label, name in enumerate(classes)}
            self._check_known(table, label_of)
            images, files = self.find_files(table)
            targets = torch.zeros(len(files), len(classes))
            kept = []
            for row, (file_name, labels) in enumerate(zip(files, table.labels, strict=True)):
                if file_name is not None:
                    kept.append(row)
                    targets[row, [label_of[name] for name in labels]] = 1.0
            names = [name for name in files if name is not None]
            self._whole[file] = names, images, targets[kept]
        return self._whole[file]

    def _check_known(self, table: LabelTable, label_of: dict[str, int]) -> None:
        for line, what in self.unknown_classes(table, label_of):
            raise DataError(f"{table.path}: {what}" if line is None else f"{table.path}, line {line}: {what}")

    def unknown_classes(self, table: LabelTable, known: Collection[str]) -> Iterator[tuple[int | None, str]]:
        """The classes of a table that training does not know, with the first line of each, and columns it lacks."""
        rows = list(zip(table.labels, table.lines, strict=True))
        used = {name: line for labels, line in reversed(rows) for name in labels}
        for name in table.classes:
            if name not in known:
                yield (
                    used.get(name),
                    f'the class "{name}" is not among the {len(known)} of the training images or the class map'
                    f"{did_you_mean(name, known)}; list all classes in a data.class_map",
                )
        missing = [name for name in known if table.columns.classes and name not in table.classes]
        if missing and not self.class_order:
            yield None, f'has no column for the class "{missing[0]}"'

    def find_files(self, table: LabelTable, report: ReportLine | None = None) -> tuple[ImageFiles, list[str | None]]:
        """Where the images of a table are, and the file of each; None for one to be left out.

        Args:
            table: names the images.
            report: is called for each image that is not there; default: the first is an error, or all are left out
                with a warning, as ``on_error`` says.

        Raises:
            DataError: an image is not there, or its name may mean several files.
        """
        images, suffix = self._place(table)
        written = [name + suffix for name in table.images]
        matches = images.match(written, other_splits(table.path))
        if remark := matches.remark():
            logger.warning("%s: %s", table.path, remark)
        files = [matches.files.get(name) for name in written]
        rows = list(zip(written, files, table.lines, strict=True))
        first: dict[str, int] = {}
        for place, (name, file, line) in enumerate(rows):
            if file is not None and (before := first.setdefault(os.path.normpath(images.path(file)), line)) != line:
                what = f'the image "{name}": line {before} names the same file; each image needs one row'
                if report is None:
                    raise DataError(f"{table.path}, line {line}: {what}")
                report(line, what)
                files[place] = None
        absent = []
        for name, file, line in rows:
            if file is None:
                why = matches.why_ambiguous(name) if name in matches.ambiguous else f"not in {images.path('')}"
                absent.append((line, f'the image "{name}": {why}'))
        if report is not None:
            for line, what in absent:
                report(line, what)
        elif absent:
            line, what = absent[0]
            text = f"{table.path}, line {line}: {what}"
            others = f", and {len(absent) - 1} more are missing" if len(absent) > 1 else ""
            if self.on_error == "raise":
                raise DataError(f"{text}{others}; data.images names another folder, data.on_error skip leaves them out")
            logger.warning("%s%s; left out", text, others)
        return images, files

    def _place(self, table: LabelTable) -> tuple[ImageFiles, str]:
        """Where most of the images are, and the suffix that the table leaves out of their names."""
        suffixes = [""] if any(map(has_image_suffix, table.images)) else ["", *SUFFIXES]
        first: DataError | None = None
        for suffix in (spelled for one in suffixes for spelled in dict.fromkeys((one, one.upper()))):
            try:
                names: Sequence[str] = [name + suffix for name in table.images[:100]]
                return find_images(self.root, table.path, names, self.images), suffix
            except DataError as error:
                first = first or error
        assert first is not None
        raise first


def held_out_images(targets: npt.NDArray[np.bool_], share: float) -> npt.NDArray[np.bool_]:
    """Chooses images to hold out: of each class about a share, and one of two images at least, the rarest class first.

    Which ones is a function of the targets alone, not of any seed, so that runs can be compared.

    Args:
        targets: whether each image has each class, ``(M, N)``.
        share: in (0, 1).

    Returns:
        Whether each image is held out, ``(M,)``.
    """
    order = np.random.default_rng(0).permutation(len(targets))
    held, decided = np.zeros(len(targets), bool), np.zeros(len(targets), bool)
    groups = [targets[:, label] for label in np.argsort(targets.sum(0), kind="stable")]
    for group in (*groups, np.ones(len(targets), bool)):
        members = order[group[order]]
        wanted = max(round(share * len(members)), min(1, len(members) // 2)) - int(held[members].sum())
        free = members[~decided[members]]
        held[free[: max(wanted, 0)]] = True
        decided[members] = True
    return held
