"""``focalnet models``: lists every architecture and checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from focalnet.cli.terminal import say


def models(
    pattern: Annotated[str, typer.Argument(help="Part of a name, or a pattern such as '*_lrf*'.")] = "*",
    as_json: Annotated[bool, typer.Option("--json", help="Print all details as JSON.")] = False,
) -> None:
    """Lists architectures and checkpoints.

    Shows parameters, MACs, published metrics, license, and whether the weights are on this machine.
    """
    from focalnet.zoo import describe_models

    listing = describe_models(pattern if any(c in pattern for c in "*?[") else f"*{pattern}*")
    if as_json:
        say(*json.dumps(listing, indent=2, ensure_ascii=False).split("\n"))
        return
    for line in _table(listing):
        say(line)


def _table(listing: list[dict[str, Any]]) -> Iterator[str]:
    """One line per architecture, followed by one line per checkpoint, in columns."""
    models = [[m["name"], _format_count(m["params"]), _format_count(m["macs"])] for m in listing]
    weights = [[[w["name"], _metrics(w), w["licence"], w["file"]] for w in m["weights"]] for m in listing]
    model_widths = _widths(models)
    weights_widths = _widths([row for rows in weights for row in rows])
    for model, (name, *figures), rows in zip(listing, models, weights, strict=True):
        params, macs = (f.rjust(width) for f, width in zip(figures, model_widths[1:], strict=True))
        cost = f"  {macs} MACs at {model['image_size']} px" if model["macs"] else ""
        yield f"{name:<{model_widths[0]}}  {params} parameters{cost}"
        for row in rows:
            yield "    " + "  ".join(f.ljust(width) for f, width in zip(row, weights_widths, strict=True)).rstrip()


def _widths(rows: list[list[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _format_count(number: int | None) -> str:
    if number is None:
        return ""
    return f"{number / 1e9:.2f} G" if number >= 1e9 else f"{number / 1e6:.2f} M"


def _metrics(weights: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in weights["metrics"].items())
