"""The page of an evaluation: one HTML file with its images inside, to be opened in any browser."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

from focalnet import files, visualize
from focalnet.errors import escaped
from focalnet.explanations.attribution import CONTROLS, METHODS
from focalnet.explanations.evaluation import COLUMNS, Cell, Evaluation

PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
  :root { color-scheme: light dark; --ink: #1d2939; --paper: #fff; --faint: #667085; --line: #d0d5dd; --best: #dbe9ff; }
  @media (prefers-color-scheme: dark) {
    :root { --ink: #e6e9ed; --paper: #14171c; --faint: #9aa4af; --line: #3a414b; --best: #1f3a63; }
  }
  body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
         max-width: 80rem; padding: 0 1rem; }
  h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
  .wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; }
  td, th { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap;
           font-variant-numeric: tabular-nums; }
  td:first-child, th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
  .best { background: var(--best); font-weight: 600; } .control { font-style: italic; }
  .invalid { color: var(--faint); text-decoration: line-through; } small, .note { color: var(--faint); }
  img { max-width: 100%; } dt { font-weight: 600; }
</style>
<h1>$title</h1>
<p class="note">$note</p>
<h2>Measures</h2>
<p class="note">Mean and 95 % bootstrap interval. The best method of each measure is marked, and
those that cannot be told apart from it, image by image. Controls (in italics) know
nothing of the network: a measure that one of them wins is invalid for these data and struck out; it is undecided where
the best method and the best control cannot be told apart. Measures without an arrow describe a map, and have no better
end. The measures of sanity look at the first images only.</p>
<div class="wide"><table>$table</table></div>
<h2>Methods</h2>
<dl>$methods</dl>
<h2>Examples</h2>
$examples
</html>
""")


def write_page(evaluation: Evaluation, path: Path) -> Path:
    """Writes the page of an evaluation.

    Raises:
        FocalNetError: the file cannot be written.
    """
    title = f"Explanations of {evaluation.model} on {Path(evaluation.data).name}"
    page = PAGE.substitute(
        title=_text(title),
        note=_text(f"{evaluation.images} images, objects or segments of {evaluation.data}"),
        table="\n".join(_rows(evaluation)),
        methods="".join(f"<dt>{_text(name)}<dd>{_text(METHODS[name])}" for name in evaluation.cells),
        examples="\n".join(_examples(evaluation)),
    )
    return files.write(path, page.encode())


def _rows(evaluation: Evaluation) -> Iterable[str]:
    names = [name for name in COLUMNS if any(name in row for row in evaluation.cells.values())]
    yield "<tr><th>method" + "".join(_head(evaluation, name) for name in names)
    for method, row in evaluation.cells.items():
        style = ' class="control"' if method in CONTROLS else ""
        cells = "".join(_cell(row.get(name), best=method in _best(evaluation, name)) for name in names)
        yield f"<tr><td{style}>{_text(method)}{cells}"


def _head(evaluation: Evaluation, name: str) -> str:
    column, verdict = COLUMNS[name], evaluation.verdicts.get(name, "")
    arrow = {True: " ↑", False: " ↓", None: ""}[column.higher_is_better]
    style = ' class="invalid"' if verdict == "invalid" else ""
    return f"<th><span{style}>{_text(column.title)}{arrow}</span><br><small>{verdict or '&nbsp;'}</small>"


def _best(evaluation: Evaluation, name: str) -> Sequence[str]:
    """The best methods of a measure that no control wins."""
    return evaluation.leaders[name] if evaluation.verdicts.get(name) in ("valid", "undecided") else ()


def _cell(cell: Cell | None, *, best: bool) -> str:
    if cell is None:
        return "<td>"
    style = ' class="best"' if best else ""
    return f"<td{style}>{cell.mean:.3f}<br><small>{cell.low:.3f} to {cell.high:.3f}</small>"


def _examples(evaluation: Evaluation) -> Iterable[str]:
    for title, image, maps, region in evaluation.examples:
        values = {method: heat.numpy() for method, heat in maps.items()}
        drawn = visualize.draw_grid(image, values, region, title=title, subtitle="each map in its own range")
        png = io.BytesIO()
        drawn.save(png, "PNG", optimize=True)
        source = base64.b64encode(png.getvalue()).decode()
        yield f'<img alt="Heat maps of {_text(title)} by every method" src="data:image/png;base64,{source}">'


def _text(text: str) -> str:
    """Text of any origin within the page."""
    return html.escape(escaped(text))
