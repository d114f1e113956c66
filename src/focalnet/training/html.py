"""Figures and tables as pieces of a page."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from PIL.Image import Image


def picture(figure: Figure) -> str:
    """A figure within the page itself."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}">'


def table(items: Iterable[tuple[str, Any]]) -> str:
    """Names and values."""
    rows = "".join(f"<tr><td>{html.escape(k)}<td>{html.escape(str(v))}" for k, v in items)
    return f"<table>{rows}</table>"


def number(value: float) -> str:
    """Two decimals, or that there is nothing it could be a figure of."""
    return "none there" if math.isnan(value) else f"{value:.2f}"


def pairs(drawn: Sequence[tuple[Image, str]]) -> str:
    """Pictures with their titles, two by two: the truth, and beside it what was found."""
    if not drawn:
        return '<p class="note">There are none.</p>'
    lines = -(-len(drawn) // 4)
    tallest = max(image.height / image.width for image, _ in drawn)
    figure = Figure(figsize=(11, (2.65 * tallest + 0.3) * lines), layout="constrained")
    places = figure.subplots(lines, 4, squeeze=False).flatten()
    for axes in places:
        axes.axis("off")
    for axes, (image, title) in zip(places, drawn, strict=False):
        axes.imshow(image)
        axes.set_title(title, fontsize=8)
    return picture(figure)
