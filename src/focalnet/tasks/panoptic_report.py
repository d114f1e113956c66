"""What the report of a run says of segments: figures, classes, the best and the worst pictures."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from focalnet.metrics.panoptic import PanopticResult
from focalnet.tasks.html import picture
from focalnet.tasks.panoptic_found import InspectedSegments, PanopticPredictions
from focalnet.visualize import draw_panoptic

TITLES = {"pq": "PQ", "sq": "SQ", "rq": "RQ"}
GROUPS = {"": "all classes", "_things": "things", "_stuff": "stuff"}


def panoptic_sections(predictions: PanopticPredictions) -> list[tuple[str, str]]:
    """Figures, quality by class, and the pictures with the highest and the lowest quality."""
    sections = [("Panoptic quality", quality(predictions.result)), ("By class", _by_class(predictions.result))]
    for title, chosen in (("Best", predictions.best), ("Worst", predictions.worst)):
        shown = picture(_sheet(chosen)) if chosen else '<p class="note">There are none.</p>'
        sections.append((f"{title} pictures: what there is, and what was found", shown))
    return sections


def quality(result: PanopticResult) -> str:
    """A row for each group of classes, a column for each figure."""
    head = "".join(f"<th>{title}, %" for title in TITLES.values())
    rows = "".join(
        f"<tr><td>{title}" + "".join(f"<td>{_number(result.stats[name + group])}" for name in TITLES)
        for group, title in GROUPS.items()
    )
    return f"<table><tr><th>{head}{rows}</table>"


def _by_class(result: PanopticResult) -> str:
    """Worst class first; classes neither there nor found are left out."""
    there = {name: figures for name, figures in result.by_class.items() if not math.isnan(figures["pq"])}
    rows = "".join(
        f"<tr><td>{html.escape(name)}"
        + "".join(f"<td>{figures[key]:.2f}" for key in TITLES)
        + f'<td><meter value="{figures["pq"] / 100:.3f}"></meter>'
        for name, figures in sorted(there.items(), key=lambda item: item[1]["pq"])
    )
    head = "".join(f"<th>{title}, %" for title in TITLES.values())
    return f"<table><tr><th>class{head}<th>{rows}</table>"


def _number(value: float) -> str:
    return "none there" if math.isnan(value) else f"{value:.2f}"


def _sheet(inspected: Sequence[InspectedSegments]) -> Figure:
    """Two columns of pairs: the truth, and what was found."""
    lines = -(-len(inspected) // 2)
    figure = Figure(figsize=(11, 2.9 * lines), layout="constrained")
    places = figure.subplots(lines, 4, squeeze=False).flatten()
    for axes in places:
        axes.axis("off")
    for i, one in enumerate(inspected):
        for axes, noun, title in (
            (places[2 * i], one.true, f"{len(one.true.segments)} there"),
            (places[2 * i + 1], one.found, f"{len(one.found.segments)} found, PQ {one.pq:.1f} %"),
        ):
            axes.imshow(draw_panoptic(noun, legend=False))
            axes.set_title(title, fontsize=8)
    return figure
