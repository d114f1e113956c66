"""Figures and tables as pieces of a page."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def picture(figure: Figure) -> str:
    """A figure within the page itself."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}">'


def table(items: Iterable[tuple[str, Any]]) -> str:
    """Names and values."""
    rows = "".join(f"<tr><td>{html.escape(k)}<td>{html.escape(str(v))}" for k, v in items)
    return f"<table>{rows}</table>"
