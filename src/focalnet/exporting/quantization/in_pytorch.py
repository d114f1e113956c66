"""``focalnet.int8_from_data``: int8 on our CPU kernels, calibrated and measured on labeled data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from focalnet.card import ModelCard
from focalnet.errors import ConfigError, DataError
from focalnet.exporting.exporting import card_of
from focalnet.exporting.quantization.data import LabeledData
from focalnet.exporting.quantization.quantizing import check_max_loss
from focalnet.kernels.quantization import Int8
from focalnet.models import Model


def int8_from_data(
    model: Model[Any, Any],
    data: str | Path,
    *,
    split: Literal["val", "test"] = "val",
    calibration: int | None = None,
    max_loss: float | None = None,
    **options: Any,
) -> Int8:
    """Options of ``focalnet.optimize(model, int8=...)`` from labeled data: images to calibrate and to measure with.

    ``optimize`` then measures the model's headline metrics before and after, and keeps layers in higher precision as
    long as more is lost than may be; if that does not help, it raises an error and leaves the model as it was.

    Args:
        model: a network of this library, with a card or without.
        data: a labeled data set as for training, whose training images calibrate.
        split: whose images measure.
        calibration: number of training images that calibrate; default: 300, or all if there are fewer.
        max_loss: percentage points of each headline metric that may be lost; default: 0.3 of a classifier's top-1
            accuracy, 0.5 of AP, mIoU and PQ.
        options: more of ``Int8``.

    Raises:
        ConfigError: an option has an invalid value.
        DataError: the data cannot be read or do not fit the network; later, by ``optimize``: the network is no better
            on them than guessing.
        MissingDependency: the extra ``train`` (classifiers) or ``dense`` is not installed.
    """
    if not isinstance(model, Model):
        raise ConfigError(
            f"int8_from_data takes networks of this library, not a {type(model).__name__}: give Int8 images and a "
            "function that measures"
        )
    most = check_max_loss(max_loss, model.config.output)
    card = card_of(model)
    labeled = LabeledData(model, card, data, split=split, count=calibration)
    return Int8(_Images(labeled), _Metrics(labeled, card), max_drop=most / 100, **options)


class _Images:
    """The calibration images in batches, read from disk each time."""

    def __init__(self, data: LabeledData) -> None:
        self._data = data

    def __iter__(self) -> Iterator[Tensor]:
        for inputs in self._data.inputs():
            yield torch.from_numpy(inputs["images"])


class _Metrics:
    """Measures a network's headline metrics, as fractions. The first network it measures must not guess.

    The data are read as one network needs them, in the order of its classes: others are refused.
    """

    def __init__(self, data: LabeledData, card: ModelCard) -> None:
        self._data, self._card, self._first = data, card, True

    def __call__(self, model: nn.Module) -> dict[str, float]:
        if not isinstance(model, Model) or model.config != self._data.config or card_of(model) != self._card:
            raise ConfigError("int8_from_data was called for another network: call it for this one")
        metrics = self._data.measure(model).values()
        for metric in metrics:
            if self._first and not metric.value > self._data.chance():
                raise DataError(
                    f"{self._data.root}: the model reaches {metric.title} {metric} on {self._data.images} images, no "
                    "more than guessing, so that no loss can be measured; give data that it was made for"
                )
        self._first = False
        return {metric.title: metric.value / 100 for metric in metrics}
