"""The published checkpoints, as ``catalogue.yaml`` lists them."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from focalnet.card import ModelCard, Preprocessing
from focalnet.errors import UnknownName, did_you_mean
from focalnet.models import published
from focalnet.weights.labels import category_ids, class_names

_FOLDER = Path(str(files("focalnet.weights")))
# That of libyaml is ten times as fast; some builds of PyYAML lack it.
_SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One place that serves a file: a URL, or a repository of the Hugging Face Hub.

    Args:
        file: the file's name at the source.
        url: its URL, if it is not on the Hub.
        hub: the Hub repository, if it is.
        repo_type: ``"model"`` or ``"space"``.
        sha256: as published by the host.
        dead: why the host no longer serves it; None while it does.
    """

    file: str
    url: str | None = None
    hub: str | None = None
    repo_type: str = "model"
    sha256: str | None = None
    dead: str | None = None

    @property
    def address(self) -> str:
        """The URL to open in a browser."""
        if self.url:
            return self.url
        prefix = "" if self.repo_type == "model" else f"{self.repo_type}s/"
        return f"https://huggingface.co/{prefix}{self.hub}/resolve/main/{self.file}"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A published checkpoint.

    Args:
        name: ``architecture.training``.
        task: ``"classification"``, ``"detection"``, ...
        architecture: the name in ``focalnet.list_models()``; for dense prediction, that of the backbone.
        labels: the label set it predicts.
        preprocessing: that of its evaluation.
        published: source of the metrics.
        licence: SPDX license name.
        metrics: published figures, percent.
        sources: in the order they are tried.
        embedded: path of the file inside this package, for our own weights.
        settings: fields of ``FocalNetConfig`` that do not follow from the weights.
        unsettled: settings on which published sources disagree, with an explanation.
        note: anything else a user should know.
        readable: whether this version can read the file's layout and classes.
    """

    name: str
    task: str
    architecture: str
    labels: str
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    published: str = "README of microsoft/FocalNet"
    licence: str = "MIT"
    metrics: dict[str, float] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()
    embedded: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    unsettled: dict[str, str] = field(default_factory=dict)
    note: str | None = None
    readable: bool = True

    @property
    def loadable(self) -> bool:
        """Whether this version has a model for it."""
        return self.task == "classification" or self.network is not None

    @property
    def network(self) -> str | None:
        """The detector's or segmenter's name in ``focalnet.list_models()``; None for other tasks."""
        name = self.name.partition(".")[0]
        network = published.networks().get(name)
        return name if self.readable and network and network.tasks[0] != "classification" else None

    @property
    def available(self) -> bool:
        """Whether a host still serves it, or it comes with the package."""
        return self.embedded is not None or any(source.dead is None for source in self.sources)

    def card(self, source: str) -> ModelCard:
        """The card of a model with weights from ``source``."""
        return ModelCard(
            name=self.name,
            class_names=class_names(self.labels),
            category_ids=category_ids(self.labels),
            preprocessing=self.preprocessing,
            licence=self.licence,
            source=source,
            metrics=dict(self.metrics),
        )


@lru_cache(maxsize=1)
def entries() -> Mapping[str, Entry]:
    """All entries by name, in the order of the catalogue file."""
    listing = yaml.load((_FOLDER / "catalogue.yaml").read_text(encoding="utf-8"), _SafeLoader)
    return {name: _entry(name, fields, listing) for name, fields in listing["entries"].items()}


def list_weights(pattern: str = "*") -> list[str]:
    """Names of the published checkpoints that match the shell pattern, e.g. ``"*.ms_in22k"``."""
    return [name for name in entries() if fnmatch.fnmatch(name, pattern)]


def find(name: str) -> Entry:
    """The entry with this name.

    Raises:
        UnknownName: there is none; the message suggests similar names.
    """
    if name not in entries():
        raise UnknownName(f'no weights "{name}"{did_you_mean(name, entries())}; "focalnet models" lists all')
    return entries()[name]


def _entry(name: str, fields: dict[str, Any], listing: Mapping[str, Any]) -> Entry:
    dead_hosts = listing["dead_hosts"]
    sources = tuple(
        Source(
            **{"file": urlsplit(source.get("url", "")).path.rpartition("/")[2], **source},
            dead=dead_hosts.get(urlsplit(source.get("url", "")).hostname),
        )
        for source in fields.pop("sources", ())
    )
    preprocessing = dict(listing["preprocessing"][fields.pop("preprocessing")]) if "preprocessing" in fields else {}
    for channelwise in preprocessing.keys() & {"mean", "std"}:
        preprocessing[channelwise] = tuple(preprocessing[channelwise])
    embedded = fields.pop("embedded", None)
    return Entry(
        name=name,
        sources=sources,
        preprocessing=Preprocessing(**preprocessing),
        embedded=_FOLDER / "embedded" / embedded if embedded else None,
        **fields,
    )
