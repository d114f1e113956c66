"""The class of each pixel of an image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image as Pillow

from focalnet import visualize
from focalnet.card import IGNORED
from focalnet.errors import InputError, did_you_mean, require
from focalnet.results.base import (
    Result,
    as_array,
    briefly,
    class_name,
    masks_to_supervision,
    percent,
    run_lengths,
    share_lines,
)
from focalnet.visualize import palettes

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

SMALLEST_NAMED = 0.005  # of the pixels: classes with a smaller share are in the legend only


class ClassShare(NamedTuple):
    """A class that is there, and its share of all pixels, 0 to 1."""

    label: int
    name: str
    share: float


@dataclass(frozen=True, eq=False, repr=False)
class SemanticMap(Result):
    """The class of each pixel of the original image.

    It iterates over the classes that are there, the largest share first; ``result["road"]`` and ``result[0]`` are the
    mask of a class.

    Args:
        labels: ``(height, width)``, int64, class indices from 0; ``IGNORED`` where there is none, except with more
            than 255 classes, where that is one of them.
        names: of all classes, by index; empty where unknown.
        image: the image itself, if it was kept; not part of equality.
        path: the file that the image was read from, if any.
    """

    labels: Tensor
    names: tuple[str, ...] = ()
    image: Image | None = field(default=None, repr=False, compare=False)
    path: str | None = None

    table_columns = ("label", "name", "share")

    def __len__(self) -> int:
        return len(self.shares())

    def __iter__(self) -> Iterator[ClassShare]:
        return (ClassShare(label, self.name(label), share) for label, share in self.shares().items())

    def __getitem__(self, class_: int | str) -> Tensor:
        """The pixels of a class, by its label or name, ``(height, width)``, bool.

        Raises:
            InputError: there is no class of this name.
        """
        if isinstance(class_, str) and class_ not in self.names:
            raise InputError(f'no class "{class_}"{did_you_mean(class_, self.names)}')
        return self.labels == (self.names.index(class_) if isinstance(class_, str) else class_)

    def _brief(self) -> str:
        height, width = self.labels.shape
        classes = briefly([f"{name} {percent(share)}" for _, name, share in self]) or "no class"
        return f"{classes}; {width} x {height}"

    def table_rows(self) -> list[dict[str, Any]]:
        """A row for each class that is there: label, name, and share of the pixels."""
        return [found._asdict() for found in self]

    def to_torchvision(self) -> Any:
        """Returns the labels as ``tv_tensors.Mask``, ``(height, width)``, int64."""
        return require("torchvision.tv_tensors", "train").Mask(self.labels)

    def to_supervision(self) -> Any:
        """Returns ``supervision.Detections`` with a mask for each class that is there, and the box around it.

        Raises:
            MissingDependency: supervision is not installed.
        """
        return masks_to_supervision([(label, name, self[label], None) for label, name, _ in self], self.labels.shape)

    def to_fiftyone(self) -> Any:
        """Returns ``fiftyone.Segmentation`` of the labels plus 1, because 0 is its background.

        Raises:
            MissingDependency: FiftyOne is not installed.
        """
        known = (len(self.names) or int(self.labels.max()) + 1) <= IGNORED
        labels = as_array(self.labels) + 1
        if known:
            labels[as_array(self.labels) == IGNORED] = 0
        return require("fiftyone", "fiftyone").Segmentation(mask=labels.astype(np.uint16))

    def shares(self) -> dict[int, float]:
        """Returns the classes that are there, and their share of all pixels, 0 to 1; the largest first."""
        labels = as_array(self.labels)
        counts = np.bincount(labels.ravel())
        if len(self.names) <= IGNORED:
            counts[IGNORED : IGNORED + 1] = 0
        largest = np.argsort(-counts, kind="stable")[: int((counts > 0).sum())]
        return {int(label): int(counts[label]) / labels.size for label in largest}

    def name(self, label: int) -> str:
        """The name of a class, ``"class 3"`` where it is unknown."""
        return class_name(self.names, label)

    def to_dict(self, *, masks: bool = False) -> dict[str, Any]:
        classes: list[dict[str, Any]] = [
            {"label": i, "name": self.name(i), "share": share} for i, share in self.shares().items()
        ]
        if masks:
            labels = as_array(self.labels)
            for one in classes:  # one by one: all masks at once are as many times the image
                (one["segmentation"],) = run_lengths(labels[None] == one["label"])
        height, width = self.labels.shape
        return {"path": self.path, "height": height, "width": width, "classes": classes}

    def summary(self) -> list[str]:
        """Returns a line for each class: its share of the pixels, and its name."""
        return share_lines((share, self.name(label)) for label, share in self.shares().items())

    def draw(self, *, legend: bool = True, as_frame: bool = False) -> Image:
        """Lays the classes over the image, each in its own color; pixels of no class are dark.

        Args:
            legend: list the classes and their shares below the image. Without, images of one size stay of one.
            as_frame: keep the size of the image, and draw no legend: all frames of a video have one size.

        Raises:
            ConfigError: the result has no image.
        """
        shares = self.shares()
        entries = [(label, f"{self.name(label)}  {percent(share)}") for label, share in shares.items()]
        return visualize.draw_label_map(
            self._canvas(),
            as_array(self.labels),
            [visualize.Area(label, label, self.name(label), share) for label, share in shares.items()],
            legend=entries if legend else None,
            smallest_named=SMALLEST_NAMED,
            names=self.names,
            as_frame=as_frame,
        )

    def save_labels(self, path: str | Path) -> Path:
        """Writes the class of each pixel as a PNG: its value is the class, 255 is none, colors are those of drawings.

        With more than 255 classes it has 16 bits and no colors, and 255 is a class.

        Args:
            path: where to, ending in ``.png``; missing folders are made.

        Raises:
            FocalNetError: the file cannot be written.
        """
        labels = as_array(self.labels)
        if max(len(self.names), int(labels.max()) + 1) > IGNORED + 1:
            return visualize.save_image(Pillow.fromarray(labels.astype(np.uint16)), path)
        png = Pillow.fromarray(labels.astype(np.uint8))
        colors = palettes.regions().copy()
        if (own := palettes.of_names(self.names)) is not None:
            colors[: len(own)] = own
        colors[IGNORED] = palettes.rgb(palettes.NOTHING)
        png.putpalette(colors.tobytes())
        return visualize.save_image(png, path)

    def write_maps(self, folder: Path, name: str) -> dict[str, str]:
        """Writes the label map; see ``Result.write_maps``."""
        return {"labels": str(self.save_labels(folder / f"{name}.labels.png"))}
