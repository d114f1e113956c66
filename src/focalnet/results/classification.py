"""The classes of an image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from focalnet import visualize
from focalnet.results.base import Result

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True)
class Classification(Result):
    """What an image shows, best class first.

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

    def to_dict(self) -> dict[str, Any]:
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
