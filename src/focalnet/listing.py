"""The list of every architecture and checkpoint, made without PyTorch where only this library's networks are known."""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib.metadata
import sys
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from focalnet.errors import UnknownName, did_you_mean
from focalnet.models import published

if TYPE_CHECKING:
    from focalnet.weights.catalogue import Entry


def describe_models(pattern: str = "*") -> list[dict[str, Any]]:
    """Lists matching architectures with all their checkpoints, and matching checkpoints under their architecture.

    Args:
        pattern: a shell pattern of the name of an architecture or checkpoint; without ``*``, ``?`` and ``[``, a part
            of it.

    Returns:
        for each architecture its name, the fields of ``published.Network`` and ``weights``, as
        ``focalnet models --json`` prints them.

    Raises:
        UnknownName: nothing matches; the message suggests similar names.
    """
    from focalnet.weights import catalogue

    pattern = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    listing, networks = [], {**published.networks(), **_of_other_packages()}
    for name, network in networks.items():
        matches = fnmatch.fnmatch(name, pattern)
        entries = [e for e in catalogue.entries().values() if (e.network or e.architecture) == name]
        chosen = [e for e in entries if matches or fnmatch.fnmatch(e.name, pattern)]
        if matches or chosen:
            weights = [_describe(entry) for entry in chosen]
            listing.append({"name": name, **dataclasses.asdict(network), "weights": weights})
    if not listing:
        names = [*networks, *catalogue.entries()]
        raise UnknownName(
            f'no model matches "{pattern}"{did_you_mean(pattern.strip("*"), names)}; "focalnet models" lists all'
        )
    return listing


def _of_other_packages() -> Mapping[str, published.Network]:
    """The networks of installed packages, and those that were registered in this process."""
    if "focalnet.registry" not in sys.modules and not importlib.metadata.entry_points(group="focalnet.models"):
        return {}
    return measured(published.networks())


def measured(known: Collection[str] = ()) -> dict[str, published.Network]:
    """All networks of the registry but those that are known, with costs that are counted."""
    from focalnet import registry, zoo

    networks = {}
    for family in registry.each():
        for name, variant in family.variants.items():
            if name not in known:
                cost = zoo.cost(name)
                networks[name] = published.Network(
                    tasks=family.tasks,
                    params=cost.params,
                    macs=cost.macs,
                    image_size=variant.image_size,
                    num_classes=registry.configure(name).num_classes,
                    source=variant.source,
                )
    return networks


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
    from focalnet.weights.cache import cached

    if not entry.loadable:
        return f"not yet ({entry.task.partition(' (')[0]})"
    if cached(entry):
        return "in this package" if entry.embedded else "cached"
    return "to download" if entry.available else "no longer served"
