"""Where files of the catalogue are on this machine, and whether their hosts can be reached; without PyTorch."""

from __future__ import annotations

import errno
import hashlib
import logging
import re
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import huggingface_hub.utils
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


def unreachable(address: str) -> str | None:
    """Why there is no connection to the host of an address; None if its name is known, or a proxy may know it.

    Libraries try again for half a minute, and log every attempt.
    """
    host = urlsplit(address).hostname or address
    if urllib.request.getproxies():
        return None
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        return f"no connection ({error.strerror or error})"
    return None


def not_writable(error: OSError) -> str | None:
    """What to do if the cache cannot be written; None for an error of another kind."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"no space left in {constants.HF_HUB_CACHE}; free some, or set HF_HUB_CACHE to a folder on another disk, "
            f"and run again: the download resumes where it stopped"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return (
            f"{constants.HF_HUB_CACHE} cannot be written ({error.strerror}); set HF_HUB_CACHE to a folder that can be, "
            f"and run again"
        )
    return None


def hub_hash(path: Path) -> str | None:
    """The hash that the Hub gave for a file of its cache, which names a content by it; None if the name is none."""
    name = path.resolve().name
    return name if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", name) else None


def has_hash(path: Path, expected: str) -> bool:
    """Whether a file has a hash of the Hub: sha256, or git's sha1 of a blob (40 digits) for small files."""
    if len(expected) == 64:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest() == expected
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == expected


@contextmanager
def quiet() -> Iterator[None]:
    """Context in which ``huggingface_hub`` logs errors only: what matters of its warnings is in our own errors."""
    logger = huggingface_hub.logging.get_logger()  # importing it sets the level, which must not be later
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
