"""Where files of the catalogue are on this machine; without PyTorch and without access to the network."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
from huggingface_hub import constants

from focalnet.weights.catalogue import Entry, Source


def folder() -> Path:
    """The cache folder for files of hosts other than the Hub."""
    return Path(constants.HF_HUB_CACHE) / "focalnet"


def of_source(source: Source) -> Path | None:
    """The local file of a source, or None."""
    if source.url:
        path = folder() / source.file
        return path if path.is_file() else None
    found = huggingface_hub.try_to_load_from_cache(str(source.hub), source.file, repo_type=source.repo_type)
    return Path(found) if isinstance(found, str) else None


def cached(entry: Entry) -> Path | None:
    """The entry's local file, or None; never accesses the network."""
    if entry.embedded is not None:
        return entry.embedded if entry.embedded.is_file() else None
    return next(filter(None, map(of_source, entry.sources)), None)
