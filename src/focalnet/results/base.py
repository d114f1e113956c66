"""What every result can do: say, draw and write what a model predicts of an image."""

from __future__ import annotations

import io
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from focalnet import visualize
from focalnet.errors import ConfigError, escaped, require

if TYPE_CHECKING:
    from pandas import DataFrame
    from PIL.Image import Image
    from torch import Tensor

MOST_SHOWN = 3  # classes in a short form


class Result(ABC):
    """What a model predicts of one image, in pixels of the original image.

    Results are equal if all they say is equal: tensors by value, whatever their device. Subclasses are dataclasses.

    Attributes:
        path: the file that the image was read from, if any.
        image: the image itself, for drawing, if it was kept; not part of equality.
    """

    path: str | None
    image: Image | None
    table_columns: ClassVar[tuple[str, ...]]
    """Keys of ``table_rows``."""

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        compared = [one.name for one in fields(self) if one.compare]  # type: ignore[arg-type]  # of a dataclass
        return all(_same(getattr(self, name), getattr(other, name)) for name in compared)

    def __hash__(self) -> int:
        return hash((type(self), self.path))

    def __repr__(self) -> str:
        """A short form: what is there, and of which image; ``to_dict`` has all of it."""
        parts = [self._brief(), *([self.path] if self.path else [])]
        return f"{type(self).__name__}({escaped('; '.join(parts))})"

    @abstractmethod
    def _brief(self) -> str:
        """What is there, in a few words."""

    @abstractmethod
    def table_rows(self) -> list[dict[str, Any]]:
        """The rows of a table, with one for each thing that the result says: plain values by column."""

    def to_pandas(self) -> DataFrame:
        """Returns ``table_rows`` with the path as a data frame; it has all columns without any row.

        Raises:
            MissingDependency: pandas is not installed.
        """
        rows = [{"path": self.path, **row} for row in self.table_rows()]
        table: DataFrame = require("pandas", "train").DataFrame(rows, columns=["path", *self.table_columns])
        return table

    @abstractmethod
    def to_dict(self, *, masks: bool = False) -> dict[str, Any]:
        """Returns plain values, as ``focalnet predict`` writes them to JSON.

        Args:
            masks: give each object, class and segment that has a mask its ``segmentation`` in COCO's run lengths,
                ``{"size": [height, width], "counts": "..."}``, which ``pycocotools.mask.decode`` reads.

        Raises:
            MissingDependency: masks need pycocotools.
        """

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

    def show(self, **options: Any) -> None:
        """Draws the result and shows the drawing: in a notebook below the cell, else in a window.

        Args:
            options: those of ``draw``.

        Raises:
            ConfigError: the result has no image.
        """
        drawing = self.draw(**options)
        interactive = sys.modules.get("IPython")  # a notebook has imported it
        shell = interactive.get_ipython() if interactive else None
        if shell is not None and hasattr(shell, "kernel"):
            require("IPython.display", "demo").display(drawing)
        else:
            drawing.show()

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
    if isinstance(values, np.ndarray):
        return values
    return (values.float() if str(values.dtype) == "torch.bfloat16" else values).cpu().numpy()  # NumPy has no bfloat16


def run_lengths(masks_NHW: npt.NDArray[Any]) -> list[dict[str, Any]]:
    """Masks in COCO's compressed run lengths: ``size`` (height, width) and ``counts``.

    Raises:
        MissingDependency: pycocotools is not installed.
    """
    coder = require("pycocotools.mask", "dense")
    if not len(masks_NHW):
        return []
    encoded = coder.encode(np.asfortranarray(masks_NHW.astype(np.uint8).transpose(1, 2, 0)))
    return [{"size": list(map(int, code["size"])), "counts": code["counts"].decode()} for code in encoded]


def _same(one: Any, other: Any) -> bool:
    if not hasattr(one, "dtype") or not hasattr(other, "dtype"):
        return bool(one == other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    one, other = as_array(one), as_array(other)
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def briefly(parts: Sequence[str]) -> str:
    """The first parts of a list, and how many follow."""
    more = len(parts) - MOST_SHOWN
    return ", ".join([*parts[:MOST_SHOWN], *([f"{more} more"] if more > 0 else [])])


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


def masks_to_supervision(masks: Sequence[tuple[int, str, Tensor, float | None]], size: Sequence[int]) -> Any:
    """``supervision.Detections`` of masks, each with its class, the name of that, and its score if it has one.

    Args:
        masks: those without a pixel are left out.
        size: height and width of all.
    """
    supervision = require("supervision", "supervision")
    masks = [one for one in masks if one[2].any()]
    bitmaps = np.array([as_array(mask) for _, _, mask, _ in masks], dtype=bool).reshape(-1, *size)
    scores = [score for *_, score in masks]
    return supervision.Detections(
        xyxy=np.array([_box_around(bitmap) for bitmap in bitmaps], dtype=np.float32).reshape(-1, 4),
        mask=bitmaps,
        confidence=None if None in scores else np.array(scores, dtype=np.float32),
        class_id=np.array([label for label, *_ in masks], dtype=int),
        data={"class_name": np.array([name for _, name, _, _ in masks], dtype=str)},
    )


def _box_around(bitmap_HW: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """x1 y1 x2 y2 of the pixels that are set; at least one must be."""
    rows, columns = np.flatnonzero(bitmap_HW.any(1)), np.flatnonzero(bitmap_HW.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
