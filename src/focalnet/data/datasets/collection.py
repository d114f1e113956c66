"""A data set as a person has it: its format, and which of its parts serve for training, validation and test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

from focalnet.data.datasets import folder, parquet, shards, tar
from focalnet.data.datasets.digits import SPLITS as DIGITS_SPLITS
from focalnet.data.datasets.digits import Digits
from focalnet.data.datasets.source import Source, hold_out
from focalnet.errors import DataError, did_you_mean

Format: TypeAlias = Literal["folder", "tar", "parquet", "wds", "digits"]
Part: TypeAlias = Literal["train", "val", "test"]

#: What the parts are usually called, most usual first.
SYNONYMS: dict[Part, tuple[str, ...]] = {
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
    if _holds(root, "parquet"):
        return "parquet"
    if _holds(root, "tar"):
        return "wds" if shards.is_webdataset(root) else "tar"
    if not folder.list_folders(root):
        raise DataError(f"{root}: no class folders, tar or Parquet files there; put images in {root}/train/<class>/")
    return "folder"


def _holds(root: Path, suffix: str) -> bool:
    return any(next(root.glob(pattern), None) for pattern in (f"*.{suffix}", f"*/*.{suffix}"))


def check_exists(root: Path) -> None:
    """Raises ``DataError`` where there is nothing."""
    if not root.exists():
        raise DataError(f"{root}: no such file or folder; point data.root at your data")


class Collection:
    """A data set and its parts.

    Args:
        root: where it is.
        kind: its format.
        wanted: names of splits to use for a part, where they are not the usual.
        holdout: fraction of each class's training images to validate on, instead of a split.
        titles: the classes in label order, name in the data to name to show; default: as the data have them.
    """

    def __init__(
        self,
        root: Path,
        kind: Format,
        *,
        wanted: Mapping[Part, str | None],
        holdout: float | None = None,
        titles: Mapping[str, str] | None = None,
    ) -> None:
        self.root, self.kind, self.wanted, self.holdout, self.titles = root, kind, wanted, holdout, titles
        if kind == "digits":
            self.splits = list(DIGITS_SPLITS)
        else:
            check_exists(root)
            self.splits = {"folder": folder, "tar": tar, "parquet": parquet, "wds": shards}[kind].splits(root)
        usual = {name for names in SYNONYMS.values() for name in names}
        #: Without splits, all the subfolders found are classes, or groups of them.
        self.has_splits = any(name in usual or name in wanted.values() for name in self.splits)

    def open(self, part: Part) -> Source:
        """The pictures of a part, of any format but WebDataset.

        Raises:
            DataError: there is no such part, or it cannot be used.
        """
        if part == "test" and self._find("test") is None:
            part = "val"
        if self.holdout and part != "test":
            return hold_out(self._open_split(self.split("train")), self.holdout)[part == "val"]
        return self._open_split(self.split(part))

    def shards(self, part: Part) -> list[tuple[Path, int]]:
        """The WebDataset shards of a part, with the number of samples of each.

        Raises:
            DataError: there is no such part, or it lacks what streams need.
        """
        if self.holdout:
            raise DataError(f"{self.root}: WebDataset shards are not split further; leave data.holdout out")
        if self.titles is None:
            raise DataError(f"{self.root}: WebDataset shards do not name their classes; list them in a data.class_map")
        return shards.find_shards(self.root, self.split(part) or self.splits[0])

    def split(self, part: Part) -> str | None:
        """The name of the split that serves as a part; none if the set has no splits and all of it does.

        Raises:
            DataError: there is none.
        """
        found = self._find(part)
        if found is not None or not self.has_splits:
            return found
        if part == "test":
            return self.split("val")
        way_out = "set data.holdout to 0.1 to hold out 10 % of the training images, or data.val_split to a split"
        raise DataError(f"{self.root}: no {part} split; {self._has()}" + f"; {way_out}" * (part == "val"))

    def _find(self, part: Part) -> str | None:
        wanted = self.wanted.get(part)
        if wanted is None:
            return next((name for name in SYNONYMS[part] if name in self.splits), None) if self.has_splits else None
        if wanted not in self.splits and not wanted.endswith(".tar"):  # else a pattern of WebDataset shards
            raise DataError(f'{self.root}: no split "{wanted}"{did_you_mean(wanted, self.splits)}; {self._has()}')
        return wanted

    def _has(self) -> str:
        return f"it has {', '.join(self.splits)}" if self.splits else "it has no splits"

    def _open_split(self, split: str | None) -> Source:
        if self.kind == "digits":
            return Digits(split or "train")
        if self.kind == "parquet":
            return parquet.Parquet(self.root, split or "train", self.titles)
        if self.kind == "tar":
            return tar.Tar(tar.split_path(self.root, split) if split else self.root, self.titles)
        return folder.Folder(self.root / split if split else self.root, self.titles)
