"""What the report of a run says of objects found: figures, curves, confusions, hits and misses."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from PIL.Image import Image

from focalnet.training.detection_found import MIN_SCORE, DetectionPredictions, Inspected
from focalnet.training.html import number, pairs, picture
from focalnet.training.panoptic_report import quality
from focalnet.visualize import draw_confusion, draw_precision_recall

if TYPE_CHECKING:
    from focalnet.metrics.coco import CocoResult, Kind

#: Kind, figure, and what to call it at the head of the report.
AP_TITLES = [(kind, ap, title) for kind in ("box", "mask") for ap, title in (("ap", "AP"), ("ap50", "AP at IoU 0.50"))]
MOST_CLASSES = 100  # above, a confusion matrix shows nothing


def detection_sections(predictions: DetectionPredictions) -> list[tuple[str, str]]:
    """Figures, precision over recall, AP by class, confusions, and the pictures with no and the most mistakes."""
    names = predictions.names
    sections = [("Average precision and recall", _figures(predictions.results))]
    if predictions.segmented is not None:
        title = "Panoptic quality, of masks laid side by side, the best in front"
        sections.append((title, quality(predictions.segmented)))
    for kind, result in predictions.results.items():
        curves = picture(draw_precision_recall(result.precision, names))
        sections.append((f"Precision over recall, {kind}", curves))
        sections.append((f"By class, {kind}", _by_class(result)))
    if len(names) <= MOST_CLASSES:
        counts = predictions.confusion.matrix.numpy()
        figure = draw_confusion(counts, [*names, "nothing there"], [*names, "missed"])
        sections.append((f"Confusions, of boxes from a score of {MIN_SCORE:g} on", picture(figure)))
    for title, chosen in (("Without a mistake", predictions.best), ("Most mistakes", predictions.worst)):
        shown = pairs(_drawn(chosen))
        sections.append((f"{title}: what there is, and what was found", shown))
    return sections


def _figures(results: Mapping[Kind, CocoResult]) -> str:
    """A row for each figure, a column for each kind."""
    head = "".join(f"<th>{kind}, %" for kind in results)
    first = next(iter(results.values()))
    rows = "".join(
        f"<tr><td>{name.replace('_', ' ').upper()}" + "".join(f"<td>{number(r.stats[name])}" for r in results.values())
        for name in first.stats
    )
    return f"<table><tr><th>{head}{rows}</table>"


def _by_class(result: CocoResult) -> str:
    """Worst class first; classes without objects are left out."""
    found = {name: figures for name, figures in result.by_class.items() if not math.isnan(figures["ap"])}
    rows = "".join(
        f"<tr><td>{html.escape(name)}<td>{number(figures['ap'])}<td>{number(figures['ap50'])}"
        f'<td>{number(figures["ar_100"])}<td><meter value="{figures["ap"] / 100:.3f}"></meter>'
        for name, figures in sorted(found.items(), key=lambda item: item[1]["ap"])
    )
    return f"<table><tr><th>class<th>AP, %<th>AP50, %<th>AR, %<th>{rows}</table>"


def _drawn(inspected: Sequence[Inspected]) -> list[tuple[Image, str]]:
    """The objects there are, and those found."""
    drawn = []
    for one in inspected:
        drawn.append((one.true.draw(scores=False), f"{len(one.true)} there"))
        drawn.append((one.found.draw(), f"{len(one.found)} found"))
    return drawn
