"""The report of a run: one HTML file with its pictures inside, to be opened in any browser."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from string import Template
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from focalnet.card import ModelCard, Preprocessing
from focalnet.metrics.confusion import count_pairs
from focalnet.training.callbacks import Inspector, Judged, Predictions, duration
from focalnet.training.detection_found import DetectionPredictions
from focalnet.training.detection_report import AP_TITLES, detection_sections
from focalnet.training.html import picture, table
from focalnet.training.panoptic_found import PanopticPredictions
from focalnet.training.panoptic_report import TITLES as PANOPTIC_TITLES
from focalnet.training.panoptic_report import panoptic_sections
from focalnet.training.run_folder import RunFolder, write
from focalnet.training.semantic_found import SemanticPredictions
from focalnet.training.semantic_report import TITLES as SEMANTIC_TITLES
from focalnet.training.semantic_report import semantic_sections
from focalnet.visualize import draw_confusion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CLASSES = 200  # above, a confusion matrix shows nothing and a table of classes is endless
#: The figures that are drawn over the epochs, at most two of a task.
DRAWN = {"top1": "top-1", "top5": "top-5", "box_ap": "box AP", "mask_ap": "mask AP"} | {
    "miou": "mIoU",
    "mean_accuracy": "mean class accuracy",
    "pq": "PQ",
    "rq": "RQ",
}
BLUE, ORANGE, GREY = "#2a6f97", "#e07a1f", "#667085"

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
    predictions: Inspector,
) -> None:
    """Writes ``report.html``: curves, what the network gets right and wrong, options, versions.

    Args:
        folder: of the run; options and versions are read from it.
        card: of the trained network.
        results: the content of ``results.json``.
        rows: of ``metrics.csv``.
        predictions: of the trained network.
    """
    if isinstance(predictions, DetectionPredictions):
        task = detection_sections(predictions)
    elif isinstance(predictions, SemanticPredictions):
        task = semantic_sections(predictions)
    elif isinstance(predictions, PanopticPredictions):
        task = panoptic_sections(predictions)
    else:
        assert isinstance(predictions, Predictions)
        task = _classification_sections(predictions, card)
    sections = [
        ("Training", picture(_curves(rows))),
        *task,
        ("Versions", table(json.loads(folder.versions.read_text()).items())),
        ("Options", f"<pre>{html.escape(folder.config.read_text())}</pre>"),
    ]
    page = PAGE.substitute(
        title=html.escape(card.name),
        numbers="".join(f"<li><b>{value}</b>{name}</li>" for name, value in _numbers(results).items()),
        sections="\n".join(f"<h2>{title}</h2>\n{content}" for title, content in sections),
    )
    write(folder.report, page.encode())


def _classification_sections(predictions: Predictions, card: ModelCard) -> list[tuple[str, str]]:
    """Confusions, accuracy by class, best and worst pictures."""
    names = card.class_names or tuple(str(i) for i in range(predictions.classes))
    sections = []
    if predictions.classes <= MOST_CLASSES:
        matrix = _confusion(predictions)
        sections.append(("Confusion matrix", picture(draw_confusion(matrix.numpy(), names, names))))
        sections.append(("Accuracy by class", _by_class(matrix, names)))
    sections.append(("Surest right answers", picture(_sheet(predictions.best, names, card.preprocessing))))
    if predictions.worst:
        sections.append(("Worst mistakes", picture(_sheet(predictions.worst, names, card.preprocessing))))
    else:
        sections.append(("Worst mistakes", '<p class="note">There are none.</p>'))
    return sections


def _numbers(results: Mapping[str, Any]) -> dict[str, str]:
    titles = {"top1": "top-1", "top5": "top-5"} | {f"{kind}_{ap}": f"{kind} {title}" for kind, ap, title in AP_TITLES}
    titles |= SEMANTIC_TITLES | PANOPTIC_TITLES
    numbers = {title: f"{results[key]:.2f} %" for key, title in titles.items() if key in results}
    return numbers | {
        "validation images": f"{results['images']:,}",
        "epochs": str(results["epochs"]),
        "training time": duration(results["seconds"]),
        "images/s in validation": f"{results['images_per_s']:,.0f}",
    }


def _curves(rows: Sequence[Mapping[str, float]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    _curve(loss, rows, {"train_loss": ("training", BLUE), "val_loss": ("validation", ORANGE)}, "loss")
    measured = {key for row in rows for key in row}
    lines = [(key, title) for key, title in DRAWN.items() if key in measured]
    colours = {key: (title, colour) for (key, title), colour in zip(lines, (BLUE, ORANGE), strict=False)}
    _curve(accuracy, rows, colours, "validation, %")
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


def _confusion(predictions: Predictions) -> Tensor:
    """``(N, N)`` counts: row = true class, column = best class."""
    return count_pairs(predictions.labels, predictions.ranked[:, 0], (predictions.classes,) * 2)


def _by_class(matrix: Tensor, names: Sequence[str]) -> str:
    """Worst class first, with the class it is taken for most often."""
    lines = []
    for i, name in enumerate(names):
        images, right = int(matrix[i].sum()), int(matrix[i, i])
        others = matrix[i].clone()
        others[i] = 0
        confused = names[int(others.argmax())] if others.any() else ""
        lines.append((right / images if images else 0.0, name, images, confused))
    body = "".join(
        f'<tr><td>{html.escape(name)}<td>{100 * share:.1f} %<td><meter value="{share:.3f}"></meter>'
        f"<td>{images}<td>{html.escape(confused)}"
        for share, name, images, confused in sorted(lines)
        if images
    )
    return f"<table><tr><th>class<th>accuracy<th><th>images<th>most often taken for{body}</table>"


def _sheet(judged: Sequence[Judged], names: Sequence[str], preprocessing: Preprocessing) -> Figure:
    from matplotlib.figure import Figure

    columns = 6
    lines = max(-(-len(judged) // columns), 1)
    figure = Figure(figsize=(11, 2.3 * lines), layout="constrained")
    places = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in places:
        axes.axis("off")
    for axes, one in zip(places, judged, strict=False):
        mistaken = "" if one.label == one.predicted else f"\ntaken for {names[one.predicted]}"
        axes.imshow(_colours(one.image, preprocessing))
        axes.set_title(
            f"{names[one.label]}{mistaken}\n{100 * one.score:.1f} %", fontsize=8, color=GREY, parse_math=False
        )
    return figure


def _colours(image_CHW: Tensor, preprocessing: Preprocessing) -> Any:
    """The picture before normalisation, ``(H, W, 3)`` in [0, 1]."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    return (image_CHW * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()
