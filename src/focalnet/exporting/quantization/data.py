"""The labeled images of an int8 export: some of the training images calibrate, those of another split measure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from focalnet.card import ModelCard
from focalnet.data.loader import collate
from focalnet.data.preprocess import pad, preprocess
from focalnet.errors import ConfigError, DataError, require
from focalnet.metrics.base import Evaluator, Metric
from focalnet.models import Model
from focalnet.samples import Size

Inputs = Mapping[str, npt.NDArray[Any]]

CALIBRATION = 300  # images, or all training images if there are fewer
#: What labeled data of each type of result look like.
EXPECTED = {
    "classification": "a folder of class folders, tar or Parquet files, with training and validation images",
    "multilabel": "a folder of images with a table of labels (CSV) for training and validation",
    "detection": "a folder of images with COCO annotations (or YOLO's, Pascal VOC's, ...) for training and validation",
    "instance": "a folder of images with COCO annotations, with masks, for training and validation",
    "semantic": "a folder of images and label maps for training and validation",
    "panoptic": "a folder of images with COCO panoptic annotations for training and validation",
}
_MADE_UP = re.compile(r"(class )?\d+")  # names of classes that nobody has named


class LabeledData:
    """Labeled images that fit a network.

    Args:
        model: the network.
        card: its class names, and how images are prepared.
        root: the data set, as for training, or the ``config.yaml`` of a run, which says where and what its data are.
        split: ``"val"`` or ``"test"``: the images to measure with.
        count: number of calibration images; default: ``CALIBRATION``, or all training images if there are fewer.

    Attributes:
        calibration: number of calibration images.
        images: number of images to measure with.

    Raises:
        ConfigError: an option has an invalid value.
        DataError: the data cannot be read, do not fit the network, or have fewer training images than asked for.
        MissingDependency: the extra ``train`` or ``dense`` is not installed.
    """

    def __init__(
        self,
        model: Model[Any, Any],
        card: ModelCard,
        root: str | Path,
        *,
        split: str = "val",
        count: int | None = None,
    ) -> None:
        if split not in ("val", "test"):
            raise ConfigError(f'split="{split}" must be "val" or "test": calibration images are those of training')
        if count is not None and count < 1:
            raise ConfigError(f"calibration={count} must be at least 1")
        self.root, self.split, self.config = Path(root), split, model.config
        self.batch_size = 32 if model.config.output in ("classification", "multilabel") else 1
        self._data = _open(model, card, self.root, split)
        self._train, self._measured = self._data.samples["train"], self._data.samples[split]
        if not all(hasattr(samples, "read") for samples in (self._train, self._measured)):
            raise DataError(f"{root}: WebDataset shards can only be read in order; give folders, tar or Parquet files")
        self.preprocessing, self.images = self._data.preprocessing, len(self._measured)
        self._chosen = self._choose(count)
        self.calibration = len(self._chosen)

    def _choose(self, count: int | None) -> list[int]:
        """Indices of training images that do not measure, drawn at random, the same in every run."""
        measured = {self._measured.path(index) for index in range(len(self._measured))}
        usable = [index for index in range(len(self._train)) if self._train.path(index) not in measured]
        if not usable or (count is not None and len(usable) < count):
            asked = "" if count is None else f", and calibration={count} asks for more"
            raise DataError(
                f"{self.root}: {len(usable)} training images are not among those to measure with{asked}; give more "
                "training images or ask for fewer"
            )
        order = np.random.default_rng(0).permutation(len(usable))[: count or CALIBRATION]
        return [usable[place] for place in order.tolist()]

    def inputs(self, count: int | None = None) -> Iterator[Inputs]:
        """The inputs of an exported network for the calibration images, or the first of them, in batches."""
        chosen = self._chosen[:count]
        for start in range(0, len(chosen), self.batch_size):
            images, originals = zip(
                *(self._prepared(index) for index in chosen[start : start + self.batch_size]), strict=True
            )
            yield {
                "images": np.ascontiguousarray(pad(list(images), self.config.size_divisor).numpy()),
                "sizes": np.array([image.shape[1:] for image in images], np.int64),
                "original_sizes": np.array(originals, np.int64),
            }

    def _prepared(self, index: int) -> tuple[Tensor, Size]:
        """A training image as in prediction ``(C, H, W)``, and its size on disk."""
        read = self._train.read(index)
        if isinstance(read, Image.Image):
            return preprocess(read, self.preprocessing), (read.height, read.width)
        pixels = read.image.as_subclass(Tensor)
        return preprocess(pixels, self.preprocessing), (pixels.shape[1], pixels.shape[2])

    def path(self, index: int) -> Path:
        """Where an image that measures is: its file, or a name within a tar or Parquet file."""
        return Path(self._measured.path(index))

    def image(self, index: int) -> Image.Image:
        """An image that measures, as it is on disk."""
        read = self._measured.read(index)
        return read if isinstance(read, Image.Image) else to_pil_image(read.image.as_subclass(Tensor))

    def measure(self, network: Model[Any, Any]) -> dict[str, Metric]:
        """The headline metrics of a network, exported or not, on all images of the split, by name."""
        evaluator = self._evaluator()
        for start in range(0, self.images, self.batch_size):
            chunk = [self._measured[index] for index in range(start, min(start + self.batch_size, self.images))]
            batch = collate(chunk, self.config.size_divisor)
            with torch.no_grad():
                results = network.predict(batch.images.to(network.dtype), batch.sizes, batch.original_sizes)
            evaluator.update(results, batch)
        return {metric.name: metric for metric in evaluator.compute() if metric.headline}

    def _evaluator(self) -> Evaluator:
        output = self.config.output
        if output == "classification":
            from focalnet.metrics.classification import ClassificationEvaluator

            return ClassificationEvaluator(self._data)
        if output == "multilabel":
            from focalnet.metrics.multilabel import MultiLabelEvaluator

            return MultiLabelEvaluator(self._data)
        if output == "semantic":
            from focalnet.metrics.semantic import SemanticEvaluator

            return SemanticEvaluator(self._data)
        if output == "panoptic":
            from focalnet.metrics.panoptic import PanopticEvaluator

            return PanopticEvaluator(self._data)
        from focalnet.metrics.coco import CocoEvaluator

        masks = self.config.learns_masks and self._data.masks
        return CocoEvaluator(self._data, masks=masks, split=self.split)

    def chance(self) -> float:
        """What guessing reaches of the headline metrics, in percent."""
        return 100 / self.config.num_classes if self.config.output == "classification" else 0.0


def _open(model: Model[Any, Any], card: ModelCard, root: Path, split: str) -> Any:
    """The data module of the network's task, with its training images and those to measure with."""
    output = model.config.output
    require("lightning", "train")  # of the data modules
    if output not in ("classification", "multilabel"):
        require("pycocotools", "dense")
    from focalnet.training.data_of_run import open_data, options_in_a_file
    from focalnet.training.preprocessing import data_options

    if not root.exists():
        raise DataError(f"{root}: no such file or folder; --data must be {EXPECTED[output]}")
    options = {"batch_size": 1, "num_workers": 0, **data_options(card.preprocessing)}
    if output in ("detection", "instance"):
        options["masks"] = model.config.learns_masks
    data = open_data(root, output, **options)
    data.class_order, data.size_divisor = card.class_names, model.config.size_divisor
    tested = data.has_test_split()
    if split == "test" and not tested:
        raise DataError(f"{root}: there is no test split; leave --split out to use the validation split")
    with options_in_a_file(root):
        if split == "test":
            data.setup("calibrate")
            data.setup("test")
        else:
            try:
                data.setup("fit")
            except DataError as error:
                raise DataError(f"{error}{'; --split test measures with the test images' * tested}") from error
    _check_classes(model, card.class_names, data, root)
    return data


def _check_classes(model: Model[Any, Any], known: Sequence[str], data: Any, root: Path) -> None:
    """Raises DataError where labels do not mean the same to network and data."""
    names = tuple(data.class_names)
    if len(names) != model.config.num_classes:
        raise DataError(
            f"{root}: has {len(names)} classes, the model {model.config.num_classes}; give data of the model's classes"
        )
    if _are_made_up(names) or _are_made_up(known):
        return
    for label, (of_data, of_model) in enumerate(zip(names, known, strict=True)):
        if _folded(of_data) != _folded(of_model):
            raise DataError(
                f'{root}: class {label} is "{of_data}" in the data and "{of_model}" in the model; give data of the '
                "model's classes"
            )
    things = getattr(data, "num_things", None)
    if things is not None and things != model.config.things:
        raise DataError(f"{root}: has {things} classes of things, the model {model.config.things}")


def _are_made_up(names: Sequence[str]) -> bool:
    return all(_MADE_UP.fullmatch(name) for name in names)  # also of no names


def _folded(name: str) -> str:
    return name.casefold().replace("_", " ").strip()
