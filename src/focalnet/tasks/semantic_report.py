"""What the report of a run says of pixels: figures, classes, confusions, the best and the worst pictures."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from focalnet.metrics.semantic import SemanticResult
from focalnet.tasks.html import picture, table
from focalnet.tasks.semantic_found import InspectedMap, SemanticPredictions
from focalnet.visualize import draw_confusion, draw_semantic

TITLES = {"miou": "mIoU", "pixel_accuracy": "pixel accuracy", "mean_accuracy": "mean class accuracy"}
MOST_CLASSES = 100  # above, a confusion matrix shows nothing


def semantic_sections(predictions: SemanticPredictions) -> list[tuple[str, str]]:
    """Figures, IoU by class, confusions, and the pictures with the highest and the lowest mean IoU."""
    result, names = predictions.result, predictions.names
    figures = [(TITLES[name], f"{value:.2f} %") for name, value in result.summary().items()]
    sections = [("Figures", table(figures)), ("By class", _by_class(result, names))]
    if len(names) <= MOST_CLASSES:
        # In thousandths of a class's pixels: the counts themselves have too many digits to be read.
        there = np.maximum(result.matrix.sum(1, keepdims=True), 1)
        share = np.rint(1000 * result.matrix[:, : len(names)] / there).astype(np.int64)
        sections.append(("Confusions, ‰ of the pixels of a class", picture(draw_confusion(share, names, names))))
    for title, chosen in (("Best", predictions.best), ("Worst", predictions.worst)):
        shown = picture(_sheet(chosen)) if chosen else '<p class="note">There are none.</p>'
        sections.append((f"{title} pictures: what there is, and what was found", shown))
    return sections


def _by_class(result: SemanticResult, names: Sequence[str]) -> str:
    """Lowest IoU first; classes neither there nor found are left out."""
    there = result.matrix.sum(1)
    rows = [(iou, i) for i, iou in enumerate(result.iou.tolist()) if not math.isnan(iou)]
    body = "".join(
        f'<tr><td>{html.escape(names[i])}<td>{iou:.2f}<td><meter value="{iou / 100:.3f}"></meter>'
        f"<td>{_number(result.class_accuracy[i])}<td>{100 * there[i] / max(there.sum(), 1):.2f}"
        for iou, i in sorted(rows)
    )
    head = "<tr><th>class<th>IoU, %<th><th>accuracy, %<th>share of all pixels, %"
    return f"<table>{head}{body}</table>"


def _number(value: float) -> str:
    return "none there" if math.isnan(value) else f"{value:.2f}"


def _sheet(inspected: Sequence[InspectedMap]) -> Figure:
    """Two columns of pairs: the truth, and what was found."""
    lines = -(-len(inspected) // 2)
    figure = Figure(figsize=(11, 2.9 * lines), layout="constrained")
    places = figure.subplots(lines, 4, squeeze=False).flatten()
    for axes in places:
        axes.axis("off")
    for i, one in enumerate(inspected):
        for axes, noun, title in ((places[2 * i], one.true, "truth"), (places[2 * i + 1], one.found, "found")):
            axes.imshow(draw_semantic(noun, legend=False))
            axes.set_title(title if noun is one.true else f"{title}, mIoU {one.miou:.1f} %", fontsize=8)
    return figure
