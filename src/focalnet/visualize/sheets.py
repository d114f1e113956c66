"""Draws sheets of many small panels: an image with the heatmaps of several blocks, and kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from focalnet.visualize import palettes
from focalnet.visualize.canvas import printable, readable_size, render
from focalnet.visualize.heatmaps import Box, draw_heatmap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

DPI = 140
SIDE = 320  # pixels of a panel's long side
GAP = 0.12  # between columns
BELOW = 0.5  # height under a panel, for its range
HEADER, LABELS, MARGIN = 1.15, 0.75, 0.2


@dataclass(frozen=True, eq=False)
class SheetRow:
    """One row of a sheet.

    Args:
        label: text beside the row, e.g. the name of a block.
        maps: heatmaps ``(h, w)`` by column title.
        region: the part of the image that they cover; None for all of it.
    """

    label: str
    maps: Mapping[str, NDArray[np.float32]]
    region: Box | None = None


def draw_sheet(image: Image.Image, rows: Sequence[SheetRow], *, title: str, subtitle: str = "") -> Image.Image:
    """Draws one row of panels for each block: the image, then its heatmaps, with the range of each below it.

    Columns are in order of appearance in the rows; a row without a heatmap of a column leaves its panel empty.
    """
    thumbnail = readable_size(image, smallest=SIDE, largest=SIDE)
    width, height = (side / DPI for side in thumbnail.size)
    columns = _merged([list(row.maps) for row in rows])
    page = _Page(rows=len(rows), columns=1 + len(columns), panel=(max(width, 1.2), max(height, 0.8)))
    page.heading(title, subtitle)
    for i, row in enumerate(rows):
        page.row_label(i, row.label)
        region = None if row.region is None else _scaled(row.region, image, thumbnail)
        _show_image(page.axes(i, 0), thumbnail, region)
        for j, column in enumerate(columns, start=1):
            if column in row.maps:
                values = row.maps[column]
                page.axes(i, j).imshow(draw_heatmap(thumbnail, values, region))
                page.range_bar(i, j, values, palettes.HEAT)
    for j, column in enumerate(["image", *columns]):
        page.column_title(j, column)
    return render(page.figure)


def draw_kernels(kernels: Mapping[str, Sequence[NDArray[np.float32]]], *, title: str) -> Image.Image:
    """Draws depthwise kernels ``(k, k)``: a row for each block, a column for each focal level, each with its range."""
    levels = max(len(row) for row in kernels.values())
    page = _Page(rows=len(kernels), columns=levels, panel=(1.6, 1.6))
    page.heading(title, "depthwise kernels, mean over channels")
    for i, (name, row) in enumerate(kernels.items()):
        page.row_label(i, name)
        for j, kernel in enumerate(row):
            page.axes(i, j).imshow(kernel, cmap=palettes.KERNEL)
            page.range_bar(i, j, kernel, palettes.KERNEL)
    for j in range(levels):
        page.column_title(j, f"level {j + 1}")
    return render(page.figure)


class _Page:
    """A figure laid out in inches, so that the size of panels does not depend on their number."""

    def __init__(self, *, rows: int, columns: int, panel: tuple[float, float]) -> None:
        self.panel = panel
        self.width = LABELS + columns * (panel[0] + GAP) - GAP + MARGIN
        self.height = HEADER + rows * (panel[1] + BELOW) + MARGIN / 2
        self.figure = Figure(figsize=(self.width, self.height), dpi=DPI, facecolor=palettes.PAPER)

    def axes(self, row: int, column: int) -> Axes:
        left, top = self._corner(row, column)
        axes = self._add(left, top, *self.panel)
        axes.set_axis_off()
        return axes

    def range_bar(self, row: int, column: int, values: NDArray[np.float32], colors: str) -> None:
        """A color bar under a panel, with the lowest and the highest value at its ends."""
        left, top = self._corner(row, column)
        axes = self._add(left, top + self.panel[1] + 0.07, self.panel[0], 0.07)
        low, high = float(values.min()), float(values.max())
        bar = ScalarMappable(Normalize(0, 1), colors)
        axes.imshow(bar.to_rgba(np.linspace(0, 1, 256)[None]), aspect="auto")
        axes.set_axis_off()
        text: dict[str, Any] = {"transform": axes.transAxes, "fontsize": 8, "color": palettes.FAINT, "va": "top"}
        axes.text(0, -0.5, f"{low:.3g}", ha="left", **text)
        axes.text(1, -0.5, f"{high:.3g}", ha="right", **text)

    def heading(self, title: str, subtitle: str) -> None:
        self._text(LABELS, 0.2, title, fontsize=14, weight="bold", va="top")
        self._text(LABELS, 0.5, subtitle, fontsize=10, color=palettes.FAINT, va="top")

    def column_title(self, column: int, text: str) -> None:
        left, top = self._corner(0, column)
        self._text(left + self.panel[0] / 2, top - 0.08, text, fontsize=10, ha="center", va="bottom")

    def row_label(self, row: int, text: str) -> None:
        left, top = self._corner(row, 0)
        middle = top + self.panel[1] / 2
        self._text(left - 0.1, middle, text, fontsize=9, ha="right", va="center", rotation=90, ma="center")

    def _text(self, left: float, top: float, text: str, **style: Any) -> None:
        """Writes text at a position in inches; dollar signs in names do not start formulas."""
        lines = "\n".join(map(printable, text.split("\n")))
        style = {"color": palettes.INK, "parse_math": False, **style}
        self.figure.text(left / self.width, 1 - top / self.height, lines, **style)

    def _corner(self, row: int, column: int) -> tuple[float, float]:
        return LABELS + column * (self.panel[0] + GAP), HEADER + row * (self.panel[1] + BELOW)

    def _add(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = self.height - top - height
        box = left / self.width, bottom / self.height, width / self.width, height / self.height
        return self.figure.add_axes(box)


def _scaled(region: Box, image: Image.Image, thumbnail: Image.Image) -> Box:
    x, y = thumbnail.width / image.width, thumbnail.height / image.height
    left, top, right, bottom = region
    return left * x, top * y, right * x, bottom * y


def _show_image(axes: Axes, image: Image.Image, region: Box | None) -> None:
    """Shows the image, with a frame around the part that the network saw if that is not all of it."""
    axes.imshow(image)
    left, top, right, bottom = region or (0, 0, *image.size)
    if right - left < image.width - 1 or bottom - top < image.height - 1:
        corner = left - 0.5, top - 0.5  # pixel centers are at whole numbers
        frame = Rectangle(corner, right - left, bottom - top, fill=False, ec="white", lw=1.2, ls="--", clip_on=False)
        axes.add_patch(frame)


def _merged(lists: Sequence[Sequence[str]]) -> list[str]:
    """All titles once: those of the longest list first, in its order, then the others."""
    longest = max(lists, key=len, default=[])
    return list(dict.fromkeys([*longest, *(title for titles in lists for title in titles)]))
