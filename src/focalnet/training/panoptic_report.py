"""What the report of a run says of segments: figures, classes, the best and the worst pictures."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from PIL.Image import Image

from focalnet.metrics.panoptic import PanopticResult
from focalnet.training.html import number, pairs
from focalnet.training.panoptic_found import InspectedSegments, PanopticPredictions

TITLES = {"pq": "PQ", "sq": "SQ", "rq": "RQ"}
GROUPS = {"": "all classes", "_things": "things", "_stuff": "stuff"}


def panoptic_sections(predictions: PanopticPredictions) -> list[tuple[str, str]]:
    """Figures, quality by class, and the pictures with the highest and the lowest quality."""
    sections = [("Panoptic quality", quality(predictions.result)), ("By class", _by_class(predictions.result))]
    for title, chosen in (("Best", predictions.best), ("Worst", predictions.worst)):
        shown = pairs(_drawn(chosen))
        sections.append((f"{title} pictures: what there is, and what was found", shown))
    return sections


def quality(result: PanopticResult) -> str:
    """A row for each group of classes, a column for each figure."""
    head = "".join(f"<th>{title}, %" for title in TITLES.values())
    rows = "".join(
        f"<tr><td>{title}" + "".join(f"<td>{number(result.stats[name + group])}" for name in TITLES)
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


def _drawn(inspected: Sequence[InspectedSegments]) -> list[tuple[Image, str]]:
    """The truth, and what was found."""
    drawn = []
    for one in inspected:
        drawn.append((one.true.draw(legend=False), f"{len(one.true.segments)} there"))
        found = f"{len(one.found.segments)} found, PQ {one.pq:.1f} %"
        drawn.append((one.found.draw(legend=False), found))
    return drawn
