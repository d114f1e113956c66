"""The interface of evaluators: metrics with their titles, and the sections of a report.

All of it is plain data. Code that prints, logs, writes or draws metrics reads only ``Metric`` and ``Section``, and does
not depend on the task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from focalnet.card import Preprocessing
from focalnet.results.base import Result
from focalnet.samples import Batch

T = TypeVar("T")


@dataclass(frozen=True)
class Metric:
    """A number that measures a model.

    Args:
        name: the key in ``results.json`` and the column in ``metrics.csv``.
        title: its name in text, e.g. ``"top-1"``.
        value: in ``unit``.
        unit: printed after the value.
        headline: print it in progress lines and store it in model cards.
        higher_is_better: whether higher values are better.
        summary: show it at the top of the report.
        per_epoch: make it a column of ``metrics.csv``.
        curve: draw it over the epochs; headlines are always drawn.
    """

    name: str
    title: str
    value: float
    unit: str = "%"
    headline: bool = False
    higher_is_better: bool = True
    summary: bool = True
    per_epoch: bool = True
    curve: bool = False

    def __str__(self) -> str:
        return f"{self.value:.2f} {self.unit}"


@dataclass(frozen=True)
class Bar:
    """A share, 0 to 1, drawn as a bar in the cell of a table."""

    share: float


@dataclass(frozen=True)
class Table:
    """Rows of text and bars; without ``columns``, it has no header."""

    rows: Sequence[Sequence[str | Bar]]
    columns: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class ConfusionMatrix:
    """Counts of target (rows) and predicted (columns) classes, ``(rows, columns)``, with the names of both."""

    counts: npt.NDArray[np.int64]
    rows: Sequence[str]
    columns: Sequence[str]


@dataclass(frozen=True, eq=False)
class PrecisionRecall:
    """Precision in percent at 101 recalls, ``(thresholds, 101, classes)``, with the names of the classes."""

    precision: npt.NDArray[np.float64]
    names: Sequence[str]


Chart: TypeAlias = ConfusionMatrix | PrecisionRecall


@dataclass(frozen=True)
class Example:
    """A validation image as the network sees it, with its prediction and target.

    Args:
        prediction: a result with its image.
        title: of the prediction.
        target: a result with its image; None if the title names the target, and the plain image is shown.
        target_title: of the target.
        options: of the prediction's ``draw``.
        target_options: of the target's ``draw``.
    """

    prediction: Result
    title: str
    target: Result | None = None
    target_title: str = ""
    options: Mapping[str, bool] = field(default_factory=dict)
    target_options: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Args:
        title: its heading.
        text: a comment.
        tables: numbers.
        results: images with predictions.
        charts: confusion matrices and precision-recall curves.
        legend: colors in the images, (red, green, blue), and the names of their classes.
        warning: what is wrong with the model or the data, shown at the top of the report.
    """

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    results: Sequence[Example] = ()
    charts: Sequence[Chart] = ()
    legend: Sequence[tuple[tuple[int, int, int], str]] = ()
    warning: str = ""


class Data(Protocol):
    """The attributes of a data module that evaluators need, after ``setup``."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def preprocessing(self) -> Preprocessing: ...


class Evaluator(ABC):
    """Compares predictions with targets: ``update`` with each batch, then ``gather``, ``compute`` and ``report``.

    Args:
        data: where the batches come from.
        examples: keep the best and the worst images, which only ``report`` needs.

    Attributes:
        rows: a row of a table for each image, or for each object, if it is a list; None keeps none.
        images: number of images compared so far.
        best: the best examples of this process, best first.
        worst: likewise, worst first.
    """

    num_examples: ClassVar[int] = 6

    def __init__(self, data: Data, *, examples: bool = False) -> None:
        self.class_names, self.preprocessing = tuple(data.class_names), data.preprocessing
        self.examples = examples
        self.images = 0
        self.rows: list[dict[str, Any]] | None = None
        self._best: list[tuple[float, Example]] = []
        self._worst: list[tuple[float, Example]] = []

    def update(self, results: Sequence[Any], batch: Batch[Any]) -> None:
        """Adds the predictions for the images of a batch; subclasses compare them."""
        self.images += len(results)
        if self.rows is not None:
            for i, (result, info) in enumerate(zip(results, batch.infos, strict=True)):
                self.rows += [{"path": info.path, **row} for row in self.table_rows(result, batch, i)]

    def gather(self) -> None:
        """Combines the counts of all processes, so that each computes the same metrics. Examples are not exchanged."""
        self.images = sum(gather_objects(self.images))
        if self.rows is not None:
            self.rows = [row for rows in gather_objects(self.rows) for row in rows]

    @abstractmethod
    def compute(self) -> list[Metric]:
        """The metrics of everything added so far, except undefined ones."""

    def details(self) -> dict[str, Any]:
        """More than ``compute`` gives: plain values for ``results.json``, in percent where they are shares.

        ``per_class`` has a mapping for each class, in label order, with its name; undefined values are None.
        ``confusion_matrix`` has the names of its ``rows`` (targets) and ``columns`` (predictions), and ``counts``.
        """
        return {}

    def table_rows(self, result: Any, batch: Batch[Any], i: int) -> list[dict[str, Any]]:
        """The rows of a table for the result of image ``i`` of a batch: plain values by column."""
        return []

    @abstractmethod
    def report(self) -> list[Section]:
        """The report on everything added so far; needs ``examples``."""

    @property
    def best(self) -> list[Example]:
        return [example for _, example in self._best]

    @property
    def worst(self) -> list[Example]:
        return [example for _, example in self._worst]

    def keep(self, make: Callable[[], Example], *, good: float | None = None, bad: float | None = None) -> None:
        """Keeps an image if it is among the best or the worst so far; of equal ones, the first is kept.

        Args:
            make: creates the example. It is called only for images that are kept, because images are large.
            good: score for the best images; None to exclude it from these.
            bad: score for the worst images, higher is worse; None to exclude it from these.
        """
        example = None
        for kept, rank in ((self._best, good), (self._worst, bad)):
            if rank is not None and (len(kept) < self.num_examples or rank > kept[-1][0]):
                example = make() if example is None else example
                insort(kept, (rank, example), key=lambda pair: -pair[0])
                del kept[self.num_examples :]

    def image(self, batch: Batch[Any], i: int) -> Image.Image:
        """Image ``i`` of a batch as the network sees it, before normalization and padding."""
        height, width = batch.sizes[i]
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.preprocessing.mean, self.preprocessing.std))
        image_CHW = batch.images[i, :, :height, :width].cpu().float() * std + mean
        return Image.fromarray((image_CHW.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())

    def example_sections(
        self, best: str, worst: str, legend: Sequence[tuple[tuple[int, int, int], str]] = ()
    ) -> list[Section]:
        """Sections with these titles and this legend for the best and the worst examples."""
        return [
            Section(title, text="" if examples else "None.", results=examples, legend=legend if examples else ())
            for title, examples in ((best, self.best), (worst, self.worst))
        ]


def rounded(value: float) -> float | None:
    """A number for JSON, with six decimals; None for NaN, which JSON does not have."""
    return None if np.isnan(value) else round(float(value), 6)


def gather_objects(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks."""
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def format_value(value: float) -> str:
    """Two decimals; "n/a" for NaN, which means that there are no targets."""
    return "n/a" if np.isnan(value) else f"{value:.2f}"
