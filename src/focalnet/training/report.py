"""The report of a run: one HTML file with its images inside, to be opened in any browser, on a phone, too."""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from string import Template
from typing import TYPE_CHECKING, Any

from focalnet.card import ModelCard
from focalnet.errors import escaped
from focalnet.metrics.base import Bar, Chart, ConfusionMatrix, Example, Metric, PrecisionRecall, Section, Table
from focalnet.training.callbacks import duration
from focalnet.training.run_folder import RunFolder
from focalnet.visualize import draw_confusion, draw_precision_recall

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

BLUE, ORANGE, GREEN, GREY = "#2a7fbf", "#e07a1f", "#3a8d54", "#7d8799"
IMAGE_SIDE = 480  # pixels of the long side of an image at least, and twice that at most

PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
  :root { color-scheme: light dark; --ink: #1d2939; --paper: #ffffff; --card: #f2f4f7; --soft: #5b6575; --line: #d9dee6;
    --link: #1b5e8c; --warn: #fff3d6; --warn-ink: #6b4a00; }
  @media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --paper: #14181f; --card: #212833; --soft: #a3adbd;
    --line: #38414f; --link: #7cbcec; --warn: #453510; --warn-ink: #ffdf9a; } }
  * { box-sizing: border-box; }
  html { scroll-padding-top: 4rem; }
  body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0; }
  main { max-width: 84rem; margin: 0 auto; padding: 0 1rem 4rem; }
  nav { position: sticky; top: 0; z-index: 1; background: var(--paper); border-bottom: 1px solid var(--line); }
  nav ul { display: flex; gap: 1.2rem; overflow-x: auto; list-style: none; margin: 0 auto; padding: .7rem 1rem;
    max-width: 84rem; white-space: nowrap; font-size: .9rem; }
  a { color: var(--link); }
  h1 { font-size: 1.6rem; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
  .numbers { display: flex; flex-wrap: wrap; gap: .8rem; padding: 0; list-style: none; }
  .numbers li { background: var(--card); border-radius: .5rem; padding: .6rem 1.1rem; }
  .numbers b { display: block; font-size: 1.4rem; }
  .scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
  td, th { padding: .25rem 1rem .25rem 0; text-align: left; border-bottom: 1px solid var(--line); }
  td + td { font-variant-numeric: tabular-nums; }
  pre { background: var(--card); border-radius: .5rem; padding: 1rem; overflow-x: auto; font-size: .85rem; }
  meter { width: 10rem; } .note, figcaption { color: var(--soft); }
  .warning { background: var(--warn); color: var(--warn-ink); border-radius: .5rem; padding: .7rem 1rem; }
  figure { margin: 0; } figcaption { font-size: .9rem; white-space: pre-line; overflow-wrap: anywhere; }
  .grid { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
  .pairs { display: grid; gap: 1.5rem; }
  .pair { display: grid; gap: .6rem 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 30rem)); }
  img { display: block; width: 100%; max-width: 30rem; height: auto; border-radius: .3rem; }
  img.tiny { image-rendering: pixelated; }
  svg { display: block; width: 100%; height: auto; fill: currentColor; } svg text { font-family: inherit; }
  .legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0; list-style: none; font-size: .9rem; }
  .legend i { display: inline-block; width: .9em; height: .9em; margin-right: .4em; vertical-align: -.1em; }
  .chart { max-width: 60rem; } .sheet { background: #fff; color: #1d2939; border-radius: .5rem; padding: .5rem; }
  .sheet figcaption { color: #5b6575; } th { white-space: nowrap; }
  .tiles { grid-template-columns: repeat(auto-fill, minmax(min(100%, 11rem), 1fr)); }
  @media (min-width: 60rem) { nav ul { flex-wrap: wrap; gap: .2rem 1.2rem; } html { scroll-padding-top: 6rem; } }
  @media (max-width: 40rem) { meter { width: 4.5rem; } td, th { padding-right: .6rem; } h1 { font-size: 1.3rem; } }
</style>
<nav aria-label="Sections"><ul>$links</ul></nav>
<main>
<h1>$title</h1>
$warnings
<ul class="numbers">$numbers</ul>
$sections
</main>
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
    sections = list(sections)
    versions = json.loads(folder.versions.read_text()) if folder.versions.is_file() else {}
    parts = [
        ("Training", _curves(rows, metrics, results.get("kept"))),
        ("Weights", _weights(results, metrics)),
        *((section.title, _content(section)) for section in sections),
        ("Versions", _table(Table([(name, _said(value)) for name, value in versions.items()]))),
        ("Options", f"<pre>{html.escape(folder.config.read_text())}</pre>"),
    ]
    parts = [(title, content) for title, content in parts if content]
    warnings = [f'<p class="warning" role="alert">{_text(s.warning)}</p>' for s in sections if s.warning]
    page = PAGE.substitute(
        title=_text(card.name),
        links="".join(f'<li><a href="#{_anchor(title)}">{_text(title)}</a>' for title, _ in parts),
        warnings="\n".join(warnings),
        numbers="".join(
            f"<li><b>{_text(value)}</b>{_text(title)}</li>" for title, value in _numbers(results, metrics).items()
        ),
        sections="\n".join(
            f'<section><h2 id="{_anchor(title)}">{_text(title)}</h2>\n{content}</section>' for title, content in parts
        ),
    )
    folder.write(folder.report, page.encode())


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _said(value: Any) -> str:
    """A value of a JSON file in words."""
    if value is None:
        return "unknown"
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


def _numbers(results: Mapping[str, Any], metrics: Iterable[Metric]) -> dict[str, str]:
    return {metric.title: str(metric) for metric in metrics if metric.summary} | {
        "validation images": f"{results['images']:,}",
        "epochs": str(results["epochs"]),
        "training time": duration(results["seconds"]),
        "images/s in validation": f"{results['images_per_s']:,.0f}",
    }


def _weights(results: Mapping[str, Any], metrics: Sequence[Metric]) -> str:
    """Which weights ``model.safetensors`` has and why the run ended, and the metrics of the others and of the test."""
    kept = results.get("kept")
    if kept is None:
        return ""
    ended = "" if results["ended"] == "complete" else f" The run was ended early: {results['ended']}."
    shown = [metric for metric in metrics if metric.headline or metric.curve]
    columns = ["weights", "images", "epoch", *(metric.title for metric in shown)]
    title = f"{kept['weights']} (model.safetensors)"
    rows: list[list[str]] = [[title, "validation", str(kept["epoch"]), *map(str, shown)]]
    others = (("last (last.ckpt)", "validation", str(results["epochs"]), "last"), (title, "test", rows[0][2], "test"))
    for which, images, epoch, key in others:
        if key in results:
            values = [f"{results[key][m.name]:.2f} {m.unit}" if m.name in results[key] else "n/a" for m in shown]
            rows.append([which, images, epoch, *values])
    return f'<p class="note">model.safetensors has the {kept["weights"]} weights.{_text(ended)}</p>' + _table(
        Table(rows, columns)
    )


def _content(section: Section) -> str:
    text = f'<p class="note">{_text(section.text)}</p>' if section.text else ""
    pieces = [text, *map(_table, section.tables), *map(_chart, section.charts)]
    if section.legend:
        pieces.append(_legend(section.legend))
    if section.results:
        pieces.append(_examples(section.results))
    return "\n".join(piece for piece in pieces if piece)


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    head = "<tr>" + "".join(f"<th>{_text(title)}" for title in table.columns) if table.columns else ""
    rows = "".join("<tr>" + "".join(map(_cell, row)) for row in table.rows)
    return f'<div class="scroll"><table>{head}{rows}</table></div>'


def _cell(cell: str | Bar) -> str:
    if isinstance(cell, Bar):
        return f'<td><meter value="{cell.share:.3f}" aria-label="{100 * cell.share:.1f} %"></meter>'
    return f"<td>{_text(cell)}"


def _text(text: str) -> str:
    """Text of any origin within the page."""
    return html.escape(escaped(text))


def _svg(figure: Figure, label: str) -> str:
    """A figure within the page itself; what is black in it has the color of the page's text."""
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace("stroke: #000000", "stroke: currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{_text(label)}" ', 1)


def _chart(chart: Chart) -> str:
    match chart:
        case ConfusionMatrix():
            figure = draw_confusion(chart.counts, chart.rows, chart.columns)
            legend = "Rows are target classes, columns predicted classes; the darker, the larger the share of the row."
        case PrecisionRecall():
            figure = draw_precision_recall(chart.precision, chart.names)
            mean = ", the mean of all classes in black" if len(chart.names) > 1 else ""
            legend = f"Precision over recall{mean}."
    width = round(96 * figure.get_figwidth())
    picture = _svg(figure, legend)
    return (
        f'<figure class="chart sheet" style="max-width: {width}px"><div class="scroll">'
        f'<div style="min-width: min({width}px, 38rem)">{picture}</div></div><figcaption>{legend}</figcaption></figure>'
    )


def _examples(examples: Sequence[Example]) -> str:
    """Images with their titles: targets and, beside them, predictions; or images alone where titles say it all."""
    if examples[0].target is None:
        images = [example.prediction.image for example in examples]
        figures = [_image(image, e.title) for image, e in zip(images, examples, strict=True) if image is not None]
        tiny = all(image is None or _is_tiny(image) for image in images)
        return f'<div class="grid{" tiles" if tiny else ""}">{"".join(figures)}</div>'
    pairs = [
        _image(_draw(example.target, example.target_options), example.target_title or "target")
        + _image(_draw(example.prediction, example.options), example.title or "prediction")
        for example in examples
    ]
    return f'<div class="pairs">{"".join(f"<div class=pair>{pair}</div>" for pair in pairs)}</div>'


def _legend(entries: Sequence[tuple[tuple[int, int, int], str]]) -> str:
    """The colors of classes with their names, in as many columns as fit."""
    items = "".join(f'<li><i style="background: rgb{color}"></i>{_text(name)}</li>' for color, name in entries)
    return f'<ul class="legend" aria-label="Colors of classes">{items}</ul>'


def _is_tiny(image: Image) -> bool:
    """Whether single pixels are to be seen."""
    return max(image.size) < IMAGE_SIDE // 4


def _image(image: Image, title: str) -> str:
    title = "\n".join(map(_text, title.split("\n")))
    tiny = _is_tiny(image)
    image = image.convert("RGB")
    image.thumbnail((2 * IMAGE_SIDE, 2 * IMAGE_SIDE))
    file = io.BytesIO()
    image.save(file, format="PNG" if tiny else "JPEG", quality=88)
    kind = "png" if tiny else "jpeg"
    source = f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
    alt = title.replace("\n", ", ")
    return (
        f'<figure><img{" class=tiny" if tiny else ""} width="{image.width}" height="{image.height}" '
        f'alt="{alt}" src="{source}"><figcaption>{title}</figcaption></figure>'
    )


def _draw(result: Any, options: Mapping[str, bool]) -> Image:
    image: Image = result.draw(**options)
    return image


def _curves(rows: Sequence[Mapping[str, float]], metrics: Sequence[Metric], kept: Mapping[str, Any] | None) -> str:
    """Loss, metrics and learning rate over the epochs; a curve without any point is left out."""
    drawn = [metric for metric in metrics if metric.headline or metric.curve]
    colors = itertools.cycle((BLUE, ORANGE, GREEN, GREY))
    lines = {m.name: (m.title, color) for m, color in zip(drawn, colors, strict=False)}
    units = ", ".join(dict.fromkeys(metric.unit for metric in drawn))
    best = int(kept["epoch"]) if kept is not None and kept["weights"] == "best" else None
    charts = [
        _curve(rows, {"train_loss": ("training", BLUE), "val_loss": ("validation", ORANGE)}, "loss", best),
        _curve(rows, lines, f"validation, {units}", best),
        _curve(rows, {"learning_rate": ("learning rate", BLUE)}, "learning rate", None),
    ]
    return f'<div class="grid">{"".join(charts)}</div>' if any(charts) else ""


def _curve(rows: Sequence[Mapping[str, float]], lines: dict[str, tuple[str, str]], title: str, best: int | None) -> str:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    for key, (label, color) in lines.items():
        points = [(row["epoch"], row[key]) for row in rows if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), color=color, label=label, marker="." if len(points) < 30 else "")
    if not axes.lines:
        return ""
    if best is not None:
        axes.axvline(best, color=GREY, linestyle="--", linewidth=1, label=f"best: epoch {best}")
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    first, last = axes.get_xlim()
    if last - first < 1:  # a single point, around which there would be fractions of epochs
        axes.set_xlim(first - 0.5, last + 0.5)
    axes.ticklabel_format(axis="y", scilimits=(-3, 5))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(axes.lines) > 1:
        axes.legend(frameon=False)
    return f"<figure>{_svg(figure, f'{title} over the epochs')}</figure>"
