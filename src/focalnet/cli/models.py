"""``focalnet models``: lists every architecture and checkpoint, without PyTorch.

``python -m focalnet.cli.models`` writes the file of the architectures and their costs, ``models/published.json``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from enum import Enum
from typing import Annotated, Any

import typer

from focalnet.cli.terminal import say
from focalnet.errors import UnknownName
from focalnet.listing import describe_models, measured
from focalnet.models import published


class Task(str, Enum):
    """Tasks that networks are trained for."""

    CLASSIFICATION = "classification"
    DETECTION = "detection"
    SEMANTIC = "semantic"
    PANOPTIC = "panoptic"


def models(
    pattern: Annotated[str, typer.Argument(help="Part of a name, or a pattern such as '*_lrf*'.")] = "*",
    task: Annotated[Task | None, typer.Option(help="List only networks for this task.")] = None,
    with_weights: Annotated[
        bool, typer.Option("--with-weights", help="List only networks with weights that can be loaded.")
    ] = False,
    local: Annotated[bool, typer.Option("--local", help="List only weights that are on this machine.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all details as JSON.")] = False,
) -> None:
    """Lists architectures and checkpoints.

    Shows parameters, MACs, published metrics, license, and whether the weights are on this machine.
    """
    listing = describe_models(pattern)
    if task is not None:
        listing = [model for model in listing if task.value in model["tasks"]]
    if local:
        listing = _of_weights(listing, {"in this package", "cached"})
    elif with_weights:
        listing = _of_weights(listing, {"in this package", "cached", "to download"})
    if not listing:
        raise UnknownName('no model is left by these options; "focalnet models" lists all')
    if as_json:
        say(*json.dumps(listing, indent=2, ensure_ascii=False).split("\n"))
        return
    for line in _table(listing):
        say(line)


def names_of_weights() -> list[str]:
    """Names of all published weights, for the completion of a shell."""
    from focalnet.weights.catalogue import list_weights

    return list_weights()


def _of_weights(listing: list[dict[str, Any]], files: set[str]) -> list[dict[str, Any]]:
    """Models with weights whose file is in one of these places, and only those weights."""
    kept = [{**model, "weights": [one for one in model["weights"] if one["file"] in files]} for model in listing]
    return [model for model in kept if model["weights"]]


def _table(listing: list[dict[str, Any]]) -> Iterator[str]:
    """A header, then one line per architecture, followed by one line per checkpoint, in columns."""
    weights = [[[w["name"], _metrics(w), w["licence"], w["file"]] for w in m["weights"]] for m in listing]
    models = [
        [m["name"], _format_count(m["params"]), _format_count(m["macs"]), f"{m['image_size']} px" if m["macs"] else ""]
        for m in listing
    ]
    header = ["architecture", "parameters", "MACs", "image"]
    widths = _widths([header, *models])
    below = ["    weights", "metrics", "license", "file"]
    weights_widths = _widths([below, *([f"    {row[0]}", *row[1:]] for rows in weights for row in rows)])
    yield _line(header, widths, right=(1, 2, 3))
    if any(weights):
        yield _line(below, weights_widths)
    for model, rows in zip(models, weights, strict=True):
        yield _line(model, widths, right=(1, 2, 3))
        for name, *others in rows:
            yield _line([f"    {name}", *others], weights_widths)


def _line(cells: list[str], widths: list[int], right: tuple[int, ...] = ()) -> str:
    pairs = enumerate(zip(cells, widths, strict=True))
    return "  ".join(cell.rjust(width) if i in right else cell.ljust(width) for i, (cell, width) in pairs).rstrip()


def _widths(rows: list[list[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _format_count(number: int | None) -> str:
    if number is None:
        return ""
    return f"{number / 1e9:.2f} G" if number >= 1e9 else f"{number / 1e6:.2f} M"


def _metrics(weights: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in weights["metrics"].items())


if __name__ == "__main__":
    rows = (f"{json.dumps(name)}: {json.dumps(dataclasses.asdict(network))}" for name, network in measured().items())
    published.FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
