"""Draws sheets of many small panels: an image with the heatmaps of several blocks, and kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image

from focalnet.visualize import palettes
from focalnet.visualize.canvas import printable, readable_size, render
from focalnet.visualize.heatmaps import Box, Scale, draw_heatmap

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


def draw_sheet(
    image: Image.Image, rows: Sequence[SheetRow], *, title: str, subtitle: str = "", dark: bool = False
) -> Image.Image:
    """Draws one row of panels for each block: the image, then its heatmaps, with the range of each below it.

    Columns are in order of appearance in the rows; a row without a heatmap of a column leaves its panel empty.
    """
    thumbnail = readable_size(image, smallest=SIDE, largest=SIDE)
    width, height = (side / DPI for side in thumbnail.size)
    columns = _merged([list(row.maps) for row in rows])
    page = _Page(rows=len(rows), columns=1 + len(columns), panel=(max(width, 1.2), max(height, 0.8)), dark=dark)
    page.heading(title, subtitle)
    for i, row in enumerate(rows):
        page.row_label(i, row.label)
        region = None if row.region is None else _scaled(row.region, image, thumbnail)
        _show_image(page.axes(i, 0), thumbnail, region)
        for j, column in enumerate(columns, start=1):
            if column in row.maps:
                values = row.maps[column]
                page.axes(i, j).imshow(draw_heatmap(thumbnail, values, region))
                page.range_bar(i, j, Scale.of(values))
    for j, column in enumerate(["image", *columns]):
        page.column_title(j, column)
    return render(page.figure)


def draw_grid(
    image: Image.Image,
    maps: Mapping[str, NDArray[np.float32]],
    region: Box | None = None,
    *,
    title: str,
    subtitle: str = "",
    columns: int = 5,
    dark: bool = False,
) -> Image.Image:
    """Draws the image and heatmaps of it in a grid, each with its title and range.

    Args:
        image: the first panel.
        maps: heatmaps ``(h, w)`` by title.
        region: the part of the image that they cover; None for all of it.
        title: of the sheet.
        subtitle: a line below the title.
        columns: panels in a row.
        dark: light text on a dark background.
    """
    thumbnail = readable_size(image, smallest=SIDE, largest=SIDE)
    width, height = (side / DPI for side in thumbnail.size)
    count = min(columns, 1 + len(maps))
    panel = max(width, 1.2), max(height, 0.8)
    page = _Page(rows=-(-(1 + len(maps)) // count), columns=count, panel=panel, dark=dark, titles=0.25)
    page.heading(title, subtitle)
    region = None if region is None else _scaled(region, image, thumbnail)
    _show_image(page.axes(0, 0), thumbnail, region)
    page.panel_title(0, 0, "image")
    for place, (name, values) in enumerate(maps.items(), start=1):
        row, column = divmod(place, count)
        page.axes(row, column).imshow(draw_heatmap(thumbnail, values, region))
        page.panel_title(row, column, name)
        page.range_bar(row, column, Scale.of(values))
    return render(page.figure)


def draw_kernels(
    kernels: Mapping[str, Sequence[NDArray[np.float32]]],
    *,
    title: str,
    subtitle: str = "depthwise kernels, mean over channels",
    dark: bool = False,
) -> Image.Image:
    """Draws depthwise kernels ``(k, k)``: a row for each block, a column for each focal level, each with its range."""
    levels = max(len(row) for row in kernels.values())
    page = _Page(rows=len(kernels), columns=levels, panel=(1.6, 1.6), dark=dark)
    page.heading(title, subtitle)
    for i, (name, row) in enumerate(kernels.items()):
        page.row_label(i, name)
        for j, kernel in enumerate(row):
            scale = Scale.of(kernel)
            page.axes(i, j).imshow(scale.rgb(kernel).astype(np.uint8))
            page.range_bar(i, j, scale)
    for j in range(levels):
        page.column_title(j, f"level {j + 1}")
    return render(page.figure)


def draw_profiles(
    profiles: Mapping[str, NDArray[np.float32]], strides: Sequence[int], *, title: str, dark: bool = False
) -> Image.Image:
    """Draws how the weight of effective kernels falls with distance: a panel for each block, a line for each level.

    Args:
        profiles: by block, shares ``(L, r + 1)`` at distances of 0, 1, ..., r cells.
        strides: pixels for each cell, by block.
        title: of the sheet.
        dark: light text on a dark background.
    """
    theme = palettes.DARK if dark else palettes.LIGHT
    figure = Figure(figsize=(3.2 * len(profiles) + 0.6, 3.4), dpi=DPI, facecolor=theme.paper, layout="constrained")
    figure.suptitle(printable(title), color=theme.ink, parse_math=False, fontsize=12)
    grid = figure.subplots(1, len(profiles), sharey=True, squeeze=False)[0]
    for axes, (name, shares), stride in zip(grid, profiles.items(), strides, strict=True):
        axes.set_facecolor(theme.paper)
        for level, line in enumerate(shares):
            color = palettes.CLASSES[level % len(palettes.CLASSES)]
            marker = "os^Dv"[level % 5]
            reach = int(np.flatnonzero(line).max(initial=0)) + 1
            axes.plot(np.arange(reach), 100 * line[:reach], marker=marker, color=color, label=f"level {level + 1}")
        axes.set_title(printable(name), color=theme.ink, fontsize=10, parse_math=False)
        axes.set_xlabel(f"distance, cells of {stride} px", color=theme.ink)
        axes.tick_params(colors=theme.faint)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        for spine in axes.spines.values():
            spine.set_color(theme.faint)
    grid[0].set_ylabel("share of the kernel, %", color=theme.ink)
    if any(len(shares) for shares in profiles.values()):
        grid[0].legend(frameon=False, fontsize=9, labelcolor=theme.ink)
    return render(figure)


class _Page:
    """A figure laid out in inches, so that the size of panels does not depend on their number."""

    def __init__(
        self, *, rows: int, columns: int, panel: tuple[float, float], dark: bool = False, titles: float = 0.0
    ) -> None:
        """``titles``: height above each panel for a title of its own."""
        self.panel, self.titles = panel, titles
        self.theme = palettes.DARK if dark else palettes.LIGHT
        self.width = LABELS + columns * (panel[0] + GAP) - GAP + MARGIN
        self.height = HEADER + rows * (panel[1] + BELOW + titles) + MARGIN / 2
        self.figure = Figure(figsize=(self.width, self.height), dpi=DPI, facecolor=self.theme.paper)

    def axes(self, row: int, column: int) -> Axes:
        left, top = self._corner(row, column)
        axes = self._add(left, top, *self.panel)
        axes.set_axis_off()
        return axes

    def range_bar(self, row: int, column: int, scale: Scale) -> None:
        """A color bar under a panel, with the values at its ends, and zero in the middle of a signed one."""
        left, top = self._corner(row, column)
        axes = self._add(left, top + self.panel[1] + 0.07, self.panel[0], 0.07)
        ramp = np.linspace(scale.low, scale.high, 256, dtype=np.float32)[None]
        axes.imshow(scale.rgb(ramp).astype(np.uint8), aspect="auto")
        axes.set_axis_off()
        text: dict[str, Any] = {"transform": axes.transAxes, "fontsize": 8, "color": self.theme.faint, "va": "top"}
        axes.text(0, -0.5, f"{scale.low:.3g}", ha="left", **text)
        axes.text(1, -0.5, f"{scale.high:.3g}", ha="right", **text)
        if scale.low < 0 < scale.high:
            axes.text(0.5, -0.5, "0", ha="center", **text)

    def panel_title(self, row: int, column: int, text: str) -> None:
        left, top = self._corner(row, column)
        self._text(left + self.panel[0] / 2, top - 0.05, text, fontsize=10, ha="center", va="bottom")

    def heading(self, title: str, subtitle: str) -> None:
        self._text(LABELS, 0.2, title, fontsize=14, weight="bold", va="top")
        self._text(LABELS, 0.5, subtitle, fontsize=10, color=self.theme.faint, va="top")

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
        style = {"color": self.theme.ink, "parse_math": False, **style}
        self.figure.text(left / self.width, 1 - top / self.height, lines, **style)

    def _corner(self, row: int, column: int) -> tuple[float, float]:
        return LABELS + column * (self.panel[0] + GAP), HEADER + self.titles + row * (
            self.panel[1] + BELOW + self.titles
        )

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
