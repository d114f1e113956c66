"""``focalnet models``: lists every architecture and checkpoint."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from focalnet.cli.terminal import say
from focalnet.errors import UnknownName, did_you_mean

if TYPE_CHECKING:
    from focalnet.weights.catalogue import Entry


def models(
    pattern: Annotated[str, typer.Argument(help="Part of a name, or a pattern such as '*_lrf*'.")] = "*",
    as_json: Annotated[bool, typer.Option("--json", help="Print all details as JSON.")] = False,
) -> None:
    """Lists architectures and checkpoints.

    Shows parameters, MACs, published metrics, license, and whether the weights are on this machine.
    """
    listing = _matching(pattern if any(c in pattern for c in "*?[") else f"*{pattern}*")
    if as_json:
        say(*json.dumps(listing, indent=2, ensure_ascii=False).split("\n"))
        return
    for line in _table(listing):
        say(line)


def _matching(pattern: str) -> list[dict[str, Any]]:
    """Matching architectures with all their checkpoints, and matching checkpoints under their architecture."""
    from focalnet import registry
    from focalnet.weights import catalogue
    from focalnet.zoo import cost, list_models

    listing = []
    for name in list_models():
        matches = fnmatch.fnmatch(name, pattern)
        entries = [e for e in catalogue.entries().values() if (e.network or e.architecture) == name]
        chosen = [e for e in entries if matches or fnmatch.fnmatch(e.name, pattern)]
        if matches or chosen:
            model_cost, variant = cost(name), registry.family_of(name).variants[name]
            listing.append(
                {
                    "name": name,
                    "params": model_cost.params,
                    "macs": model_cost.macs,
                    "image_size": variant.image_size,
                    "num_classes": registry.configure(name).num_classes,
                    "source": variant.source,
                    "weights": [_describe(entry) for entry in chosen],
                }
            )
    if not listing:
        names = [*list_models(), *catalogue.entries()]
        raise UnknownName(
            f'no model matches "{pattern}"{did_you_mean(pattern.strip("*"), names)}; "focalnet models" lists all'
        )
    return listing


def _describe(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "task": entry.task,
        "labels": entry.labels,
        "metrics": entry.metrics,
        "metrics_source": entry.published,
        "licence": entry.licence,
        "file": _availability(entry),
        "note": entry.note,
    }


def _availability(entry: Entry) -> str:
    from focalnet.weights.download import cached

    if not entry.loadable:
        return f"not yet ({entry.task.partition(' (')[0]})"
    if cached(entry):
        return "in this package" if entry.embedded else "cached"
    return "to download" if entry.available else "no longer served"


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
