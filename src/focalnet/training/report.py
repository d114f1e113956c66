"""The report of a run: one HTML file with its images inside, to be opened in any browser."""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from string import Template
from typing import TYPE_CHECKING, Any

from focalnet.card import ModelCard
from focalnet.errors import escaped
from focalnet.metrics.base import Bar, Chart, ConfusionMatrix, Example, Metric, PrecisionRecall, Section, Table
from focalnet.training.callbacks import duration
from focalnet.training.run_folder import RunFolder
from focalnet.visualize import draw_confusion, draw_precision_recall
from focalnet.visualize.canvas import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

BLUE, ORANGE, GREEN, GREY = "#2a6f97", "#e07a1f", "#3a7d44", "#667085"

PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; color: #1d2939; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
  h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
  .numbers { display: flex; flex-wrap: wrap; gap: 1rem; padding: 0; list-style: none; }
  .numbers li { background: #f2f4f7; border-radius: .5rem; padding: .7rem 1.2rem; }
  .numbers b { display: block; font-size: 1.5rem; }
  img { max-width: 100%; } table { border-collapse: collapse; font-size: .9rem; }
  td, th { padding: .2rem .8rem .2rem 0; text-align: left; } td + td { font-variant-numeric: tabular-nums; }
  pre { background: #f2f4f7; border-radius: .5rem; padding: 1rem; overflow-x: auto; font-size: .85rem; }
  meter { width: 12rem; } .note { color: #667085; }
</style>
<h1>$title</h1>
<ul class="numbers">$numbers</ul>
$sections
</html>
""")


def write_report(
    folder: RunFolder,
    card: ModelCard,
    results: Mapping[str, Any],
    rows: Sequence[Mapping[str, float]],
    metrics: Sequence[Metric],
    sections: Iterable[Section],
) -> None:
    """Writes ``report.html``: curves, what the network gets right and wrong, options, versions.

    Args:
        folder: of the run; options and versions are read from it.
        card: of the trained network.
        results: the content of ``results.json``.
        rows: of ``metrics.csv``.
        metrics: of the trained network.
        sections: what its evaluator reports.
    """
    parts = [
        ("Training", _figure(_curves(rows, metrics))),
        *((_text(section.title), _content(section)) for section in sections),
        ("Versions", _table(Table([(k, str(v)) for k, v in json.loads(folder.versions.read_text()).items()]))),
        ("Options", f"<pre>{html.escape(folder.config.read_text())}</pre>"),
    ]
    page = PAGE.substitute(
        title=_text(card.name),
        numbers="".join(
            f"<li><b>{_text(value)}</b>{_text(title)}</li>" for title, value in _numbers(results, metrics).items()
        ),
        sections="\n".join(f"<h2>{title}</h2>\n{content}" for title, content in parts),
    )
    folder.write(folder.report, page.encode())


def _numbers(results: Mapping[str, Any], metrics: Iterable[Metric]) -> dict[str, str]:
    return {metric.title: str(metric) for metric in metrics if metric.summary} | {
        "validation images": f"{results['images']:,}",
        "epochs": str(results["epochs"]),
        "training time": duration(results["seconds"]),
        "images/s in validation": f"{results['images_per_s']:,.0f}",
    }


def _content(section: Section) -> str:
    text = f'<p class="note">{_text(section.text)}</p>' if section.text else ""
    pieces = [text, *map(_table, section.tables), *(_figure(_drawn(chart)) for chart in section.charts)]
    if section.results:
        pieces.append(_figure(_tiles(section.results)))
    return "\n".join(piece for piece in pieces if piece)


def _table(table: Table) -> str:
    head = "<tr>" + "".join(f"<th>{_text(title)}" for title in table.columns) if table.columns else ""
    return f"<table>{head}{''.join('<tr>' + ''.join(map(_cell, row)) for row in table.rows)}</table>"


def _cell(cell: str | Bar) -> str:
    return f'<td><meter value="{cell.share:.3f}"></meter>' if isinstance(cell, Bar) else f"<td>{_text(cell)}"


def _text(text: str) -> str:
    """Text of any origin within the page."""
    return html.escape(escaped(text))


def _figure(figure: Figure) -> str:
    """A figure within the page itself."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}">'


def _drawn(chart: Chart) -> Figure:
    match chart:
        case ConfusionMatrix():
            return draw_confusion(chart.counts, chart.rows, chart.columns)
        case PrecisionRecall():
            return draw_precision_recall(chart.precision, chart.names)


def _tiles(examples: Sequence[Example]) -> Figure:
    """Images with their titles: targets and, beside them, predictions; or small images where titles say it all."""
    from matplotlib.figure import Figure

    drawn: list[tuple[Image, str]] = []
    for example in examples:
        if example.target is None:
            assert example.prediction.image is not None
            drawn.append((example.prediction.image, example.title))
        else:
            drawn.append((_draw(example.target, example.target_options), example.target_title))
            drawn.append((_draw(example.prediction, example.options), example.title))
    columns, width = (6, 1.8) if examples[0].target is None else (4, 2.65)
    lines = -(-len(drawn) // columns)
    tallest = max(image.height / image.width for image, _ in drawn)
    most_lines = max(title.count("\n") for _, title in drawn) + 1
    figure = Figure(figsize=(11, (width * tallest + 0.15 + 0.15 * most_lines) * lines), layout="constrained")
    places = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in places:
        axes.axis("off")
    for axes, (image, title) in zip(places, drawn, strict=False):
        axes.imshow(image)
        axes.set_title("\n".join(map(printable, title.split("\n"))), fontsize=8, parse_math=False)
    return figure


def _draw(result: Any, options: Mapping[str, bool]) -> Image:
    image: Image = result.draw(**options)
    return image


def _curves(rows: Sequence[Mapping[str, float]], metrics: Sequence[Metric]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    loss, measured, rate = figure.subplots(1, 3)
    _curve(loss, rows, {"train_loss": ("training", BLUE), "val_loss": ("validation", ORANGE)}, "loss")
    drawn = [metric for metric in metrics if metric.headline or metric.curve]
    lines = {
        m.name: (m.title, color) for m, color in zip(drawn, itertools.cycle((BLUE, ORANGE, GREEN, GREY)), strict=False)
    }
    units = dict.fromkeys(metric.unit for metric in drawn)
    _curve(measured, rows, lines, f"validation, {', '.join(units)}")
    _curve(rate, rows, {"learning_rate": ("learning rate", BLUE)}, "learning rate")
    return figure


def _curve(axes: Any, rows: Sequence[Mapping[str, float]], lines: dict[str, tuple[str, str]], title: str) -> None:
    for key, (label, color) in lines.items():
        points = [(row["epoch"], row[key]) for row in rows if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), color=color, label=label, marker="." if len(points) < 30 else "")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("epoch")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if any(label != title for label, _ in lines.values()):
        axes.legend(frameon=False)
