"""Charts of metrics: precision-recall curves, confusion matrices, and the loss over learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from focalnet.visualize import palettes
from focalnet.visualize.canvas import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LINES = 10  # with more classes, only the mean is drawn
LONGEST_LABEL = 40  # characters of a name
IOUS = (0.5, 0.75)  # thresholds to draw, of those from 0.50 in steps of 0.05


def draw_precision_recall(precision: NDArray[np.float64], names: Sequence[str]) -> Figure:
    """Draws precision over recall at IoU 0.50 and 0.75: up to 10 classes in colors, and the mean of several in black.

    Args:
        precision: percent, at 101 recalls, ``(thresholds, 101, classes)``; NaN for classes without objects.
        names: class names.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, iou in zip(figure.subplots(1, 2, sharey=True), IOUS, strict=True):
        curves = precision[round((iou - 0.5) / 0.05)]
        present = np.flatnonzero(~np.isnan(curves).all(0))
        if len(present) <= MOST_LINES:
            for label in present.tolist():
                axes.plot(
                    range(101),
                    curves[:, label],
                    color=palettes.of_class(label),
                    label=_label(names[label]),
                )
        if len(present) > 1:
            axes.plot(range(101), np.nanmean(curves[:, present], axis=1), color=palettes.INK, lw=2, label="mean")
        _finish(axes, f"IoU {iou:.2f}")
    return figure


def draw_range_test(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], suggestion: float | None
) -> Figure:
    """Draws the loss over the learning rate, with a line at the suggested one.

    Args:
        rates: ascending.
        losses: one for each rate.
        smoothed: likewise.
        suggestion: a rate; None for none.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, color=palettes.FAINT, lw=0.8, label="loss of an update")
    axes.plot(rates, smoothed, color=palettes.BAR, lw=2, label="smoothed")
    if suggestion is not None:
        axes.axvline(suggestion, color=palettes.INK, linestyle="--", lw=1.2, label=f"suggested: {suggestion:g}")
    least, first = min(smoothed), smoothed[0]
    axes.set(xscale="log", xlabel="model.optimizer.lr", ylabel="training loss")
    axes.set_ylim(least - 0.15 * (first - least) - 0.02 * abs(least), max(1.5 * first - 0.5 * least, first * 1.1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _label(name: str) -> str:
    return printable(name, LONGEST_LABEL)


def _finish(axes: Axes, title: str) -> None:
    axes.set(xlabel="recall, %", xlim=(0, 101), ylim=(0, 102))
    axes.set_title(title, fontsize=10)
    axes.set_ylabel("precision, %")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        for text in axes.legend(frameon=False, fontsize=8).get_texts():
            text.set_parse_math(False)


def draw_confusion(matrix: NDArray[np.int64], rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """Draws counts of target (rows) and predicted (columns) classes, colored by their share of the row.

    Args:
        matrix: counts, ``(rows, columns)``.
        rows: names of the target classes.
        columns: names of the predicted classes.
    """
    side = min(3.0 + 0.35 * len(rows), 11.0)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    share = matrix / matrix.sum(1, keepdims=True).clip(min=1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("target")
    if len(rows) <= 40:
        axes.set_xticks(range(len(columns)), [*map(_label, columns)], rotation=90, parse_math=False)
        axes.set_yticks(range(len(rows)), [*map(_label, rows)], parse_math=False)
    if len(rows) <= 20:
        for i, j in np.argwhere(matrix).tolist():
            color = "white" if share[i, j] > 0.5 else "black"
            axes.text(j, i, str(int(matrix[i, j])), ha="center", va="center", fontsize=8, color=color)
    return figure
