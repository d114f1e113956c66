"""What the report of a run says of pixels: figures, classes, confusions, the best and the worst pictures."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np
from PIL.Image import Image

from focalnet.metrics.semantic import SemanticResult
from focalnet.training.html import number, pairs, picture, table
from focalnet.training.semantic_found import InspectedMap, SemanticPredictions
from focalnet.visualize import draw_confusion

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
        shown = pairs(_drawn(chosen))
        sections.append((f"{title} pictures: what there is, and what was found", shown))
    return sections


def _by_class(result: SemanticResult, names: Sequence[str]) -> str:
    """Lowest IoU first; classes neither there nor found are left out."""
    there = result.matrix.sum(1)
    rows = [(iou, i) for i, iou in enumerate(result.iou.tolist()) if not math.isnan(iou)]
    body = "".join(
        f'<tr><td>{html.escape(names[i])}<td>{iou:.2f}<td><meter value="{iou / 100:.3f}"></meter>'
        f"<td>{number(result.class_accuracy[i])}<td>{100 * there[i] / max(there.sum(), 1):.2f}"
        for iou, i in sorted(rows)
    )
    head = "<tr><th>class<th>IoU, %<th><th>accuracy, %<th>share of all pixels, %"
    return f"<table>{head}{body}</table>"


def _drawn(inspected: Sequence[InspectedMap]) -> list[tuple[Image, str]]:
    """The truth, and what was found."""
    drawn = []
    for one in inspected:
        drawn.append((one.true.draw(legend=False), "truth"))
        drawn.append((one.found.draw(legend=False), f"found, mIoU {one.miou:.1f} %"))
    return drawn
