"""What every evaluator has in common: metrics with their titles, and what a report is made of.

All of it is plain data. Whoever prints, logs, writes or draws metrics reads ``Metric`` and ``Section``, and knows no
task.
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
    """A number that says how good a model is.

    Args:
        name: the key in ``results.json`` and the column in ``metrics.csv``.
        title: what to call it in prose, e.g. ``"top-1"``.
        value: in ``unit``.
        unit: printed behind the value.
        headline: say it in progress lines and keep it in model cards.
        higher_is_better: whether a better model has a higher value.
        summary: say it at the head of the report.
        per_epoch: make it a column of ``metrics.csv``.
        curve: draw it over the epochs, as headlines are.
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
    """A share, 0 to 1, to be drawn in the cell of a table."""

    share: float


@dataclass(frozen=True)
class Table:
    """Rows of text and bars; without ``columns``, it has no head."""

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
    """A validation image as the network sees it, with its prediction.

    Args:
        prediction: with the image.
        title: of the prediction.
        target: with the image; None where the title says it all, and the image is shown as it is.
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
        text: a remark.
        tables: numbers.
        results: images with predictions.
        charts: to be drawn.
    """

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    results: Sequence[Example] = ()
    charts: Sequence[Chart] = ()


class Data(Protocol):
    """What evaluators must know of the data, after ``setup``."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def preprocessing(self) -> Preprocessing: ...


class Evaluator(ABC):
    """Compares predictions with targets: ``update`` with each batch, then ``gather``, ``compute`` and ``report``.

    Args:
        data: where the batches come from.
        examples: keep what only ``report`` needs, such as the best and the worst images.

    Attributes:
        images: how many were compared.
        best: the best examples of this process, best first.
        worst: likewise, worst first.
    """

    num_examples: ClassVar[int] = 6

    def __init__(self, data: Data, *, examples: bool = False) -> None:
        self.class_names, self.preprocessing = tuple(data.class_names), data.preprocessing
        self.examples = examples
        self.images = 0
        self._best: list[tuple[float, Example]] = []
        self._worst: list[tuple[float, Example]] = []

    def update(self, results: Sequence[Any], batch: Batch[Any]) -> None:
        """Adds the predictions for the images of a batch; subclasses compare them."""
        self.images += len(results)

    def gather(self) -> None:
        """Adds what all processes have; each then computes the same. Examples stay where they are."""
        self.images = sum(gather_objects(self.images))

    @abstractmethod
    def compute(self) -> list[Metric]:
        """The metrics of everything added so far, without those that nothing is measured by."""

    @abstractmethod
    def report(self) -> list[Section]:
        """What there is to say of everything added so far; needs ``examples``."""

    @property
    def best(self) -> list[Example]:
        return [example for _, example in self._best]

    @property
    def worst(self) -> list[Example]:
        return [example for _, example in self._worst]

    def keep(self, make: Callable[[], Example], *, good: float | None = None, bad: float | None = None) -> None:
        """Keeps an image that is among the best or the worst so far; of equal ones, those that came first.

        Args:
            make: the example. Not called for the others: images are large.
            good: how good it is, if it may be shown as one of the best.
            bad: how bad, if as one of the worst.
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

    def example_sections(self, best: str, worst: str) -> list[Section]:
        """The best and the worst examples under these titles."""
        return [
            Section(title, text="" if examples else "There are none.", results=examples)
            for title, examples in ((best, self.best), (worst, self.worst))
        ]


def gather_objects(part: T) -> list[T]:
    """What each process has, in their order."""
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, part)
    return parts


def format_value(value: float) -> str:
    """Two decimals, or that there is nothing it could be a value of."""
    return "none there" if np.isnan(value) else f"{value:.2f}"
