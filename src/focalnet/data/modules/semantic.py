"""Semantic segmentation data for training: from images and label maps to loaders of batches."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from focalnet.data.augment import SemanticAugmentation
from focalnet.data.dataset import SemanticDataset
from focalnet.data.formats.label_maps import (
    CheckedPairs,
    LabelRule,
    check_masks,
    implausible,
    mostly_ignored,
    only_object,
    remarks,
    too_few_classes,
    unchecked,
)
from focalnet.data.formats.pairs import Pairs, find_pairs, own_layout, suggest
from focalnet.data.formats.problems import decide
from focalnet.data.loader import world
from focalnet.data.modules.base import AUTOMATIC_HOLDOUT, SAYS_HELD_OUT, DensePredictionData, held_out
from focalnet.data.readers.classes import ClassList, read_class_names
from focalnet.data.readers.collection import Split
from focalnet.errors import ConfigError, DataError
from focalnet.samples import IGNORED

logger = logging.getLogger(__name__)

ADE20K = "objectInfo150"  # how it calls its list of classes
#: Where the names of the classes are looked for in the root.
CLASS_FILES = (
    *("classes.json", "classes.txt", f"{ADE20K}.txt", f"{ADE20K}.csv"),
    *("labelmap.txt", "class_names.txt", "class_dict.csv", "_classes.csv", "train/_classes.csv"),
)
UNCHECKED = 64  # masks of a split that are opened all the same, where there may be one object class


class SemanticData(DensePredictionData[SemanticDataset]):
    """Loaders of ``samples.Batch`` for training, validation and test.

    An image and its mask, a label map with one number a pixel, have the same name in two folders, or in an
    uncompressed tar file with such folders. By default these are ``images/training`` and
    ``annotations/training`` as in ADE20K (also ``masks`` or ``labels``, ``train``; ``train/images`` and
    ``train/masks``), Cityscapes' ``leftImg8bit`` and ``gtFine``, Pascal VOC's folders with lists in ``ImageSets``
    (as CVAT writes them), or ``x.jpg`` beside ``x_mask.png``. Every mask is checked before training.

    Args:
        root: the folder of the data set, or a tar file.
        images: the folder of images, with the splits in it, or in each split; goes with ``masks``.
        masks: the folder of label maps.
        mask_suffix: what a mask's name has behind that of its image, e.g. ``"_mask"``.
        train_split: the training split's own name; default: ``train`` or ``training``.
        val_split: likewise; default: ``val``, ``validation``, ...
        test_split: likewise; default: ``test``, else the validation split.
        holdout: fraction of the training images to validate on, instead of a split; default: 0.2 where there are but
            training images.
        class_names: by label, or the file that lists them (see ``readers.classes.read_class_names``); default:
            one of ``CLASS_FILES`` in the root, else as many as the training masks have. A list with colors is the
            palette of masks in colors.
        ignore_index: this label in a mask is not a class; default: that of ``classes.json``, else 255, except where the
            masks of all splits hold only 0 and one other number: that is class 1, and a warning says so.
        reduce_zero_label: 0 is not a class either, and the classes count from 1; default: where ADE20K's list is.
        label_map: other numbers for some of those in the masks, before anything else.
        check: open every mask before training; false where ``focalnet check-data`` has done it once and for all.
        image_size: short side in pixels of the network's input, in evaluation.
        max_size: most pixels of the long side, in evaluation.
        ratios: in evaluation each image is seen at these sizes, as factors of ``image_size`` and ``max_size``, and
            the mean of the probabilities counts; 0.5, 0.75, ..., 1.75 (with ``model.flip``) is the multi-scale test.
        augmentation: how training images are varied; the default is the official one of ADE20K.
        kwargs: those of ``DensePredictionData``.

    Raises:
        ConfigError: an option has an impossible value.
    """

    size_divisor = 1  # as UPerNet's

    def __init__(
        self,
        root: str | os.PathLike[str],
        images: str | None = None,
        masks: str | None = None,
        mask_suffix: str = "",
        train_split: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        holdout: float | None = None,
        class_names: list[str] | str | None = None,
        ignore_index: int | None = None,
        reduce_zero_label: bool | None = None,
        label_map: dict[int, int] | None = None,
        check: bool = True,
        image_size: int = 512,
        max_size: int = 2048,
        ratios: tuple[float, ...] = (1.0,),
        augmentation: SemanticAugmentation = SemanticAugmentation(),  # noqa: B008  # frozen
        **kwargs: Any,
    ) -> None:
        super().__init__(root, image_size=image_size, max_size=max_size, **kwargs)
        if holdout is not None and not 0 < holdout < 1:
            raise ConfigError(f"data.holdout={holdout} must be a fraction between 0 and 1")
        if not ratios or min(image_size * ratio for ratio in ratios) < 1:
            raise ConfigError(f"data.ratios={list(ratios)} must be one factor or more that leaves an image pixels")
        self.layouts = own_layout(images, masks, mask_suffix)
        self.splits: dict[Split, str | None] = {"train": train_split, "val": val_split, "test": test_split}
        self.holdout, self.given_names, self.ignore_index = holdout, class_names, ignore_index
        self.reduce_zero_label, self.label_map, self.check = reduce_zero_label, label_map, check
        self.ratios, self.augmentation = tuple(ratios), augmentation
        self._class_names: tuple[str, ...] = ()
        self._trains = self._says_held_out = False
        self._object: tuple[int | None] | None = None  # known once the masks have been opened

    def default_val_batch_size(self) -> int:
        return world()[1]  # one each: the others' sizes would pad it

    def find(self, split: Split) -> Pairs:
        """The images of a split and their masks.

        Raises:
            DataError: there is no such split.
        """
        holdout = self.holdout or self._automatic_holdout()
        if holdout and (split != "test" or (self.holdout is None and self._find("test") is None)):
            whole = self._find("train")
            whole = self._find_whole() if whole is None else whole
            found = hold_out_pairs(whole, holdout)[split != "train"] if whole is not None else None
        elif split == "test" and self.splits["test"] is None:
            found = self._find("test")
            found = self._find("val") if found is None else found
        else:
            found = self._find(split)
        if found is None:
            wanted = self.splits[split] or split
            there = suggest(self.root) if self.root.is_dir() else ""
            options = there.replace("--label-maps", "--masks").replace("--", "data.").replace("mask-", "mask_")
            hint = f"; there are images with masks by {options}" if there else ""
            raise DataError(
                f"{self.root}: no images with masks for {wanted} there (images/{wanted} and annotations/{wanted}, or "
                f"{wanted}/images and {wanted}/masks); data.images, data.masks and data.{split}_split name other "
                f"folders, data.holdout 0.1 validates on a tenth of the training images{hint}"
            )
        return found

    def has_test_split(self) -> bool:
        test = self._find("test")
        return test is not None and test.name != self.find("val").name

    def setup(self, stage: str) -> None:
        self._trains |= stage == "fit"
        super().setup(stage)

    def _automatic_holdout(self) -> float | None:
        """A share to hold out where there are but training images; in evaluation only if they are called so."""
        if any(self.splits.values()) or self._find("val") is not None or self._find("test") is not None:
            return None
        if self._find("train") is None and not (self._trains and self._find_whole() is not None):
            return None
        if not self._says_held_out:
            self._says_held_out = True
            logger.warning("%s: %s", self.root, SAYS_HELD_OUT)
        return AUTOMATIC_HOLDOUT

    def found(self) -> dict[Split | None, Pairs]:
        """The splits that are there; None stands for a set without any."""
        splits: tuple[Split, ...] = ("train", "val", "test")
        found: dict[Split | None, Pairs | None] = {split: self._find(split) for split in splits}
        if all(pairs is None for pairs in found.values()):
            found = {None: self._find_whole()}
        return {split: pairs for split, pairs in found.items() if pairs is not None}

    def _find(self, split: Split) -> Pairs | None:
        return self._colored(find_pairs(self.root, split, self.layouts, self.splits[split]))

    def _find_whole(self) -> Pairs | None:
        return self._colored(find_pairs(self.root, None, self.layouts))

    def _colored(self, pairs: Pairs | None) -> Pairs | None:
        """The pairs with the colors of the list of classes."""
        palette = self._class_list().palette
        return pairs if pairs is None or palette is None else replace(pairs, palette=palette)

    def rule(self, pairs: Pairs) -> tuple[LabelRule, tuple[str, ...]]:
        """What the numbers in masks mean, and the names of the classes as far as they are known.

        Raises:
            DataError: the list of classes cannot be read, or is too long; or masks hold only 0 and one other number, of
                which it is not said what they mean, and ``check`` is false.
        """
        listed = self._class_file()
        names, ignored, _ = self._class_list()
        if isinstance(self.given_names, list):
            names = tuple(self.given_names)
        names = names or pairs.layout.class_names
        if len(names) >= IGNORED:
            raise DataError(f"{self.root}: {len(names)} classes; at most {IGNORED - 1} are possible")
        if self.ignore_index is not None:
            ignored = self.ignore_index
        from_one = self.reduce_zero_label
        if from_one is None:
            from_one = listed is not None and listed.stem == ADE20K
        label_map = pairs.layout.label_map if self.label_map is None else self.label_map
        chosen = self.label_map is not None or ignored is not None or from_one or pairs.layout.label_map
        if not chosen and len(names) in (0, 2) and (number := self._only_object()) not in (None, 1):
            label_map = {number: 1}
        rule = LabelRule(
            ignore_index=IGNORED if ignored is None else ignored, reduce_zero_label=from_one, label_map=label_map
        )
        return rule, names

    def _only_object(self) -> int | None:
        """The number of the one object class, where the masks of all splits hold only 0 and it. Says so, once."""
        if self._object is None:
            number = only_object(list(self.found().values()), None if self.check else UNCHECKED)
            self._object = (number,)
            if number not in (None, 1) and not self.check:
                raise DataError(
                    f"{self.root}: its masks seem to hold only 0 and {number}, and data.check is false: data.label_map "
                    f"{{{number}: 1}} makes {number} an object, data.ignore_index {number} ignores it, data.check true "
                    "finds out"
                )
            if number == 1:
                logger.info("%s: its masks hold only 0 and 1: background and object", self.root)
            elif number is not None:
                logger.warning(
                    "%s: its masks hold only 0 and %d, background and object, so %d is read as class 1, as by "
                    "data.label_map {%d: 1}; data.ignore_index %d ignores it instead",
                    *(self.root, *(number,) * 4),
                )
        return self._object[0]

    @property
    def ignores_by_default(self) -> bool:
        """Whether no option says what is ignored."""
        return self.ignore_index is None and self.label_map is None

    def problem(self, checked: CheckedPairs, rule: LabelRule, names: Sequence[str], *, named: bool) -> str | None:
        """Why the masks to train on are refused as a whole, though each is a label map; None if they are not."""
        if why := too_few_classes(checked, rule, names):
            return why
        if not named and (why := implausible(checked, rule)):
            return why
        asked = not self.ignores_by_default or self._class_list().ignore_index is not None or rule.reduce_zero_label
        return None if asked or checked.pairs.layout.label_map else mostly_ignored(checked, rule)

    def _class_file(self) -> Path | None:
        """The file that lists the classes, if any."""
        folder = self.root if self.root.is_dir() else self.root.parent
        if isinstance(self.given_names, str):
            return folder / self.given_names
        return next((folder / name for name in CLASS_FILES if (folder / name).is_file()), None)

    def _class_list(self) -> ClassList:
        file = self._class_file()
        return read_class_names(file) if file else ClassList()

    def _open(self, split: Split) -> SemanticDataset:
        pairs = self.find(split)
        rule, names = self.rule(pairs)
        named = bool(names)
        if not (names or self._class_names):
            names = self._count_classes(rule)
        self._class_names = self._class_names or names
        checked = check_masks(pairs, rule, len(self._class_names)) if self.check else unchecked(pairs)
        decide(checked, self.on_error)
        if split == "train":
            self._check_classes(checked, rule, named=named)
        elif self.check and not checked.labels:
            raise DataError(f"{checked.pairs.name}: {too_few_classes(checked, rule, self._class_names)}")
        listed = named or split != "train"  # another split may well lack classes
        for remark in remarks(checked, rule, named=listed, by_default=self.ignores_by_default):
            logger.warning("%s", remark)
        return SemanticDataset(
            checked.pairs,
            rule,
            self._class_names,
            self.preprocessing,
            augmentation=self.augmentation if split == "train" else None,
            ratios=self.ratios,
            seed=self.seed,
            on_error=self.on_error,
        )

    def _check_classes(self, checked: CheckedPairs, rule: LabelRule, *, named: bool) -> None:
        why = self.problem(checked, rule, self._class_names, named=named) if self.check else None
        if why is None and len(self._class_names) < 2:
            why = f'there is one class only, "{self._class_names[0]}", and a segmenter needs two or more'
        if why is not None:
            raise DataError(f"{checked.pairs.name}: {why}")

    def _count_classes(self, rule: LabelRule) -> tuple[str, ...]:
        """Made-up names for as many classes as the training masks have."""
        if not self.check:
            raise DataError(f"{self.root}: unknown classes; list them as data.class_names, or leave data.check true")
        checked = check_masks(self.find("train"), rule, None)
        if not checked.labels:
            decide(checked, "raise")
        if why := self.problem(checked, rule, (), named=False):
            decide(checked, self.on_error)
            raise DataError(f"{checked.pairs.name}: {why}")
        return tuple(f"class {label}" for label in range(checked.labels[-1] + 1))


def hold_out_pairs(pairs: Pairs, fraction: float) -> tuple[Pairs, Pairs]:
    """The rest, and a fraction that is held out, at least one; a function of the pairs alone, not of any seed.

    Raises:
        DataError: there is but one pair.
    """
    if len(pairs) < 2:
        raise DataError(f"{pairs.name}: {len(pairs)} image; holding out some needs 2 or more")
    held = held_out(len(pairs), fraction)

    def subset(wanted: bool) -> Pairs:
        names = [name for index, name in enumerate(pairs.names) if (index in held) == wanted]
        return replace(pairs, names=names, problems=[] if wanted else pairs.problems)

    return subset(False), subset(True)
