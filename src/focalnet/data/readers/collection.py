"""A data set as a person has it: its format, and which of its splits serve for training, validation and test."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

from focalnet.data.images import list_folder
from focalnet.data.readers import folder, parquet, tar, webdataset
from focalnet.data.readers.digits import SPLITS as DIGITS_SPLITS
from focalnet.data.readers.digits import Digits
from focalnet.data.readers.source import Source, hold_out
from focalnet.errors import DataError, did_you_mean

logger = logging.getLogger(__name__)

Format: TypeAlias = Literal["folder", "tar", "parquet", "wds", "digits"]
Split: TypeAlias = Literal["train", "val", "test"]

#: What the splits are usually called, most usual first.
SYNONYMS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "dev", "eval"),
    "test": ("test", "testing"),
}


def detect(root: Path) -> Format:
    """The format of a data set, by what lies there.

    Raises:
        DataError: there is nothing, or nothing known.
    """
    check_exists(root)
    if root.is_file():
        if root.suffix != ".tar":
            raise DataError(f"{root}: is not a data set; give a folder or a .tar file")
        return "tar"
    if any(_holds(root, kind) for kind in ("parquet", "tar")) and _holds_images(root):
        logger.warning("%s: has archives beside folders of images; the folders are read, see data.format", root)
        return "folder"
    if _holds(root, "parquet"):
        return "parquet"
    if _holds(root, "tar"):
        return "wds" if webdataset.is_webdataset(root) else "tar"
    if not folder.list_folders(root):
        raise DataError(f"{root}: no class folders, tar or Parquet files there; put images in {root}/train/<class>/")
    return "folder"


def _holds(root: Path, suffix: str) -> bool:
    return any(next(root.glob(pattern), None) for pattern in (f"*.{suffix}", f"*/*.{suffix}"))


def _holds_images(root: Path) -> bool:
    return any(list_folder(child) for child in folder.list_folders(root))


def check_exists(root: Path) -> None:
    """Raises ``DataError`` where there is nothing."""
    if not root.exists():
        raise DataError(f"{root}: no such file or folder; point data.root at your data")


class Collection:
    """A data set and its splits.

    Args:
        root: where it is.
        format: its format.
        wanted: names of splits in the data, where they are not the usual.
        holdout: fraction of each class's training images to validate on, instead of a split.
        titles: the classes in label order, name in the data to name to show; default: as the data have them.
    """

    def __init__(
        self,
        root: Path,
        format: Format,
        *,
        wanted: Mapping[Split, str | None],
        holdout: float | None = None,
        titles: Mapping[str, str] | None = None,
    ) -> None:
        self.root, self.format, self.wanted, self.holdout, self.titles = root, format, wanted, holdout, titles
        if format == "digits":
            self.splits = list(DIGITS_SPLITS)
        else:
            check_exists(root)
            self.splits = {"folder": folder, "tar": tar, "parquet": parquet, "wds": webdataset}[format].splits(root)
        usual = {name for names in SYNONYMS.values() for name in names}
        #: Without splits, all the subfolders found are classes, or groups of them.
        self.has_splits = any(name.lower() in usual or name in wanted.values() for name in self.splits)

    @property
    def holds_only_training(self) -> bool:
        """Whether there is nothing to validate on and nothing to test on but images of training."""
        others: tuple[Split, ...] = ("val", "test")
        found = any(self._find(split) is not None for split in others)
        return not found and (not self.has_splits or self._find("train") is not None)

    def has(self, split: Split) -> bool:
        """Whether the set has a split of its own by this name."""
        return self._find(split) is not None

    def open(self, split: Split) -> Source:
        """The images of a split, of any format but WebDataset.

        Raises:
            DataError: there is no such split, or it cannot be used.
        """
        if split == "test" and self._find("test") is None:
            split = "val"
        if self.holdout and split != "test":
            return hold_out(self._open_split(self.name_of("train")), self.holdout)[split == "val"]
        return self._open_split(self.name_of(split))

    def shards(self, split: Split) -> list[tuple[Path, int]]:
        """The WebDataset shards of a split, with the number of samples of each.

        Raises:
            DataError: there is no such split, or it lacks what streams need.
        """
        if self.holdout:
            raise DataError(f"{self.root}: WebDataset shards are not split further; leave data.holdout out")
        if self.titles is None:
            raise DataError(f"{self.root}: WebDataset shards do not name their classes; list them in a data.class_map")
        return webdataset.find_shards(self.root, self.name_of(split) or self.splits[0])

    def name_of(self, split: Split) -> str | None:
        """The name in the data of a split; none if the set has no splits and all of it serves.

        Raises:
            DataError: there is none.
        """
        found = self._find(split)
        if found is not None or not self.has_splits:
            return found
        if split == "test":
            return self.name_of("val")
        way_out = "set data.holdout to 0.1 to hold out 10 % of the training images, or data.val_split to a split"
        raise DataError(f"{self.root}: no {split} split; {self._has()}" + f"; {way_out}" * (split == "val"))

    def _find(self, split: Split) -> str | None:
        wanted = self.wanted.get(split)
        if wanted is None:
            usual = (have for name in SYNONYMS[split] for have in self.splits if have.lower() == name)
            return next(usual, None) if self.has_splits else None
        if wanted not in self.splits and not wanted.endswith(".tar"):  # else a pattern of WebDataset shards
            raise DataError(f'{self.root}: no split "{wanted}"{did_you_mean(wanted, self.splits)}; {self._has()}')
        return wanted

    def _has(self) -> str:
        return f"it has {', '.join(self.splits)}" if self.splits else "it has no splits"

    def _open_split(self, name: str | None) -> Source:
        if self.format == "digits":
            return Digits(name or "train")
        if self.format == "parquet":
            return parquet.Parquet(self.root, name or "train", self.titles)
        if self.format == "tar":
            return tar.Tar(tar.split_path(self.root, name) if name else self.root, self.titles)
        return folder.Folder(self.root / name if name else self.root, self.titles)
