"""The classes of an image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

from focalnet import visualize
from focalnet.errors import require
from focalnet.results.base import Result, briefly

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class RankedClass(NamedTuple):
    """A class of a classification with its score, 0 to 1."""

    label: int
    name: str
    score: float


@dataclass(frozen=True, eq=False, repr=False)
class Classification(Result):
    """What an image shows, best class first. It is a sequence of its classes: ``result[0].name``.

    Args:
        labels: class indices.
        scores: softmax probabilities, in [0, 1].
        names: class names, one for each label.
        path: the file that the image was read from, if any.
        image: the image itself, if it was kept; not part of equality.
        logits: ``(N,)`` of all classes, by index; not part of equality, nor of ``to_dict``.
    """

    labels: tuple[int, ...]
    scores: tuple[float, ...]
    names: tuple[str, ...]
    path: str | None = None
    image: Image | None = field(default=None, repr=False, compare=False)
    logits: Tensor | None = field(default=None, repr=False, compare=False)

    table_columns = ("rank", "label", "name", "score")

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[RankedClass]:
        return map(RankedClass, self.labels, self.names, self.scores)

    @overload
    def __getitem__(self, index: int) -> RankedClass: ...
    @overload
    def __getitem__(self, index: slice) -> list[RankedClass]: ...

    def __getitem__(self, index: int | slice) -> RankedClass | list[RankedClass]:
        return list(self)[index]

    def _brief(self) -> str:
        return briefly([f"{name} {score:.1%}" for _, name, score in self])

    def table_rows(self) -> list[dict[str, Any]]:
        """A row for each class: its rank from 1, label, name and score."""
        return [{"rank": rank, **found._asdict()} for rank, found in enumerate(self, start=1)]

    def to_supervision(self) -> Any:
        """Returns ``supervision.Classifications``.

        Raises:
            MissingDependency: supervision is not installed.
        """
        return require("supervision", "supervision").Classifications(
            class_id=np.array(self.labels, dtype=int), confidence=np.array(self.scores)
        )

    def to_fiftyone(self) -> Any:
        """Returns ``fiftyone.Classification`` of the best class, with the scores of the others as its ``top``.

        Raises:
            MissingDependency: FiftyOne is not installed.
        """
        best = self[0]
        top = {name: score for _, name, score in self}
        return require("fiftyone", "fiftyone").Classification(label=best.name, confidence=best.score, top=top)

    def to_label_studio(self, model: str = "focalnet", *, from_name: str = "label", to_name: str = "image") -> Any:
        """Returns a prediction for Label Studio: the best class as a choice.

        Args:
            model: its version, as Label Studio shows it.
            from_name: the name of ``<Choices>`` in the labeling configuration.
            to_name: the name of ``<Image>`` there.
        """
        best = self[0]
        choice = {"choices": [best.name]}
        region = {"from_name": from_name, "to_name": to_name, "type": "choices", "value": choice}
        return {"model_version": model, "score": best.score, "result": [region]}

    def to_dict(self, *, masks: bool = False) -> dict[str, Any]:
        ranked = zip(self.labels, self.names, self.scores, strict=True)
        return {"path": self.path, "top": [{"label": i, "name": n, "score": s} for i, n, s in ranked]}

    def summary(self) -> list[str]:
        """Returns a line for each class: its score in percent, and its name."""
        return [f"{100 * score:5.1f} %  {name}" for score, name in zip(self.scores, self.names, strict=True)]

    def draw(self, *, as_frame: bool = False) -> Image:
        """Draws the image with its best classes and their scores below.

        Args:
            as_frame: keep the size of the image, and write only the best class, in its corner.

        Raises:
            ConfigError: the result has no image.
        """
        return visualize.draw_ranking(self._canvas(), self.names, self.scores, as_frame=as_frame)
