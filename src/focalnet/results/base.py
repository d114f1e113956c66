"""What every result can do: say, draw and write what a model predicts of an image."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from focalnet import visualize
from focalnet.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class Result(ABC):
    """What a model predicts of one image, in pixels of the original image.

    Attributes:
        path: the file that the image was read from, if any.
        image: the image itself, for drawing, if it was kept; not part of equality.
    """

    path: str | None
    image: Image | None

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, as ``focalnet predict`` writes them to JSON."""

    @abstractmethod
    def summary(self) -> list[str]:
        """Returns the lines that ``focalnet predict`` prints below the path."""

    @abstractmethod
    def draw(self, *, as_frame: bool = False) -> Image:
        """Draws the result on a copy of its image.

        Args:
            as_frame: keep the size of the image, and draw nothing beside it: all frames of a video have one size.

        Raises:
            ConfigError: the result has no image.
        """

    def save(self, path: str | Path) -> Path:
        """Draws the result and writes the drawing; the suffix chooses the format, missing folders are made.

        Raises:
            ConfigError: the result has no image, or the suffix names no format.
            FocalNetError: the file cannot be written.
        """
        return visualize.save_image(self.draw(), path)

    def write_maps(self, folder: Path, name: str) -> dict[str, str]:
        """Writes label maps for other programs, where the result has any, beside its drawing.

        Args:
            folder: where to.
            name: of the image; names of files start with it.

        Returns:
            Their paths, by the key that they have in the result's entry of ``predictions.json``.
        """
        return {}

    def coco_entries(self, image_id: Any, category_ids: Sequence[Any], name: str) -> dict[str, list[dict[str, Any]]]:
        """Returns what the result adds to the lists of a COCO file, by the list; nothing where COCO has no such file.

        Args:
            image_id: of the image.
            category_ids: by label.
            name: as in ``write_maps``.
        """
        return {}

    def _repr_png_(self) -> bytes | None:
        """The drawing, which notebooks show; None without an image."""
        if self.image is None:
            return None
        png = io.BytesIO()
        self.draw().save(png, "PNG")
        return png.getvalue()

    def _canvas(self) -> Image:
        """The image to draw on."""
        if self.image is None:
            raise ConfigError(
                f"nothing to draw on: the result of {self.path or 'this image'} has no image; "
                "take results from a Predictor, which keeps images, or set dataclasses.replace(result, image=...)"
            )
        return self.image


def as_array(values: Tensor | npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A field of a result as an array: of PyTorch's models it is a tensor, of exported networks an array."""
    return values if isinstance(values, np.ndarray) else values.cpu().numpy()


def class_name(names: Sequence[str], label: int) -> str:
    """The name of a class, ``"class 3"`` where it is unknown."""
    return names[label] if label < len(names) else f"class {label}"


def percent(share: float) -> str:
    """A share of the pixels in a legend."""
    return "< 0.1 %" if share < 0.0005 else f"{100 * share:.1f} %"


def share_lines(shares: Iterable[tuple[float, str]]) -> list[str]:
    """A line for each share of the pixels and its name; those that can hardly be seen have one line together."""
    shares = list(shares)
    lines = [f"{100 * share:5.1f} %  {name}" for share, name in shares if share >= 0.0005]
    rest = ", ".join(name for share, name in shares if share < 0.0005)
    return [*lines, *([f"< 0.1 %  {rest}"] if rest else [])]
