"""The local file of a catalogue entry: from the cache, or downloaded once.

``huggingface_hub`` downloads files of the Hugging Face Hub. A small resuming downloader puts files of other
hosts into the folder ``focalnet`` of the same cache, so that both share one cache and one set of environment
variables (``HF_HOME``, ``HF_HUB_CACHE``, ``HF_HUB_OFFLINE``). The sha256 of a file is checked at every use:
against the published value, or else the one recorded in ``focalnet/sha256.json`` at first use.
"""

from __future__ import annotations

import errno
import http.client
import json
import logging
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Any

import huggingface_hub
import huggingface_hub.utils
from filelock import FileLock
from huggingface_hub import constants

from focalnet.errors import CheckpointError, DownloadError
from focalnet.files import write
from focalnet.weights.catalogue import Entry, Source
from focalnet.weights.files import sha256_of

ATTEMPTS = 4
WAIT = 0.5  # seconds before the second attempt; doubles each time
TIMEOUT = 30.0  # seconds without data
_CHUNK = 1 << 20

logger = logging.getLogger(__name__)


class _SourceFailed(Exception):
    """A source did not serve the file; the next one is tried."""


def local_file(entry: Entry) -> Path:
    """The entry's local file; downloads it if it is not cached.

    Raises:
        DownloadError: no source served it; the message says which file to put where.
    """
    if entry.embedded is not None:
        if not entry.embedded.is_file():
            raise DownloadError(f"{entry.name}: this installation lacks {entry.embedded}; install focalnet again")
        return entry.embedded
    failures = []
    for source in sorted(entry.sources, key=lambda source: _in_cache(source) is None):  # cached files first
        try:
            path = _in_cache(source) or _get(source)
            _check_sha256(source, path)
            return path
        except _SourceFailed as failed:
            logger.info("%s: %s", source.address, failed)
            failures.append(f"{source.address}: {failed}")
    raise DownloadError(_by_hand(entry, failures))


def cached(entry: Entry) -> Path | None:
    """The entry's local file, or None; never accesses the network."""
    if entry.embedded is not None:
        return entry.embedded if entry.embedded.is_file() else None
    return next(filter(None, map(_in_cache, entry.sources)), None)


def folder() -> Path:
    """The cache folder for files of hosts other than the Hub."""
    return Path(constants.HF_HUB_CACHE) / "focalnet"


def _in_cache(source: Source) -> Path | None:
    if source.url:
        path = folder() / source.file
        return path if path.is_file() else None
    found = huggingface_hub.try_to_load_from_cache(str(source.hub), source.file, repo_type=source.repo_type)
    return Path(found) if isinstance(found, str) else None


def _get(source: Source) -> Path:
    if source.dead:
        raise _SourceFailed(f"gone, {source.dead}")
    try:
        return _from_hub(source) if source.hub else _from_host(source)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DownloadError(
                f"{source.file}: no space left in {constants.HF_HUB_CACHE}; free some, or set HF_HUB_CACHE to a "
                f"folder on another disk, and run again: the download resumes where it stopped"
            ) from error
        raise _SourceFailed(_first_line(error)) from error


def _from_hub(source: Source) -> Path:
    try:
        return Path(huggingface_hub.hf_hub_download(str(source.hub), source.file, repo_type=source.repo_type))
    except OSError:
        raise
    except Exception as error:  # some errors of its HTTP library pass through; the library depends on the version
        raise _SourceFailed(_first_line(error)) from error


def _from_host(source: Source) -> Path:
    if constants.HF_HUB_OFFLINE:
        raise _SourceFailed("offline (HF_HUB_OFFLINE is set)")
    folder().mkdir(parents=True, exist_ok=True)
    with FileLock(folder() / f"{source.file}.lock"):  # a second process waits here, then finds the file
        return _in_cache(source) or _download(source)


def _download(source: Source) -> Path:
    """Downloads to ``*.part``, resumes after interruptions, and moves the complete file into place."""
    target = folder() / source.file
    part = target.with_name(target.name + ".part")
    for attempt in range(ATTEMPTS):
        try:
            _continue(str(source.url), part)
            break
        except urllib.error.HTTPError as error:
            if error.code < 500 or attempt + 1 == ATTEMPTS:
                raise _SourceFailed(f"HTTP {error.code} {error.reason}") from error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            if attempt + 1 == ATTEMPTS:
                raise _SourceFailed(f"{error}; run again to resume") from error
        time.sleep(WAIT * 2**attempt)
    if source.sha256 and sha256_of(part) != source.sha256:
        part.unlink()
        raise _SourceFailed(f"the downloaded file does not have the sha256 {source.sha256}")
    os.replace(part, target)
    return target


def _continue(url: str, part: Path) -> None:
    """Appends the missing bytes of the file at ``url`` to ``part``.

    Raises:
        ConnectionError: the connection broke off early.
        OSError: another error of the network, the server or the disk.
    """
    etag = part.with_name(part.name + ".etag")
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "focalnet", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if etag.exists():
            headers["If-Range"] = etag.read_text()  # if the file has changed, the server sends it from the start
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()  # longer than the file, or complete but not yet moved: start over
            raise ConnectionError("the partial download does not belong to this file") from error
        raise
    with response, part.open("ab") as file:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            have = 0
            file.truncate(0)
        tag = response.headers.get("ETag", "")
        if tag and not tag.startswith("W/"):
            etag.write_text(tag)
        length = response.headers.get("Content-Length")
        _copy(response, file, have, None if length is None else have + int(length))
    etag.unlink(missing_ok=True)


def _copy(response: Any, file: IO[bytes], have: int, total: int | None) -> None:
    # Obeys HF_HUB_DISABLE_PROGRESS_BARS; disable=None shows the bar on a terminal only.
    bar: Any = huggingface_hub.utils.tqdm  # type: ignore[attr-defined]
    with bar(total=total, initial=have, unit="B", unit_scale=True, disable=None) as progress:
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            have += len(chunk)
            progress.update(len(chunk))
    file.flush()
    os.fsync(file.fileno())
    if total is not None and have != total:
        raise ConnectionError(f"broke off after {have} of {total} bytes")


def _check_sha256(source: Source, path: Path) -> None:
    actual = sha256_of(path)
    expected = source.sha256 or _recorded(source, actual)
    if actual != expected:
        logger.warning("%s does not have the sha256 %s expected for %s", path, expected, source.address)
        raise _SourceFailed(f"{path} does not have the sha256 {expected}; delete it to download it again")


def _recorded(source: Source, actual: str) -> str:
    """The sha256 of this source's file at its first use on this machine, which is recorded now if there is none."""
    record = folder() / "sha256.json"
    try:
        folder().mkdir(parents=True, exist_ok=True)
        with FileLock(f"{record}.lock"):
            known: dict[str, str] = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
            if source.address not in known:
                known[source.address] = actual
                write(record, json.dumps(known, indent=1, sort_keys=True).encode(), CheckpointError)
            return known[source.address]
    except (OSError, CheckpointError, ValueError) as error:  # a cache shared read-only, or a damaged record
        logger.info("the sha256 of %s could not be recorded in %s: %s", source.address, record, error)
        return actual


def _by_hand(entry: Entry, failures: list[str]) -> str:
    """The error message: what failed, and which file to put where."""
    best = min(entry.sources, key=lambda source: (source.dead is not None, source.url is None))
    if best.dead:
        advice = f"if you have {best.file}, put it at {folder() / best.file}"
    elif best.url:
        advice = f"put {best.file} ({best.url}) at {folder() / best.file}"
    else:
        advice = f"download {best.address} by other means"
    return f"{entry.name} could not be downloaded ({'; '.join(failures)}): {advice}, or give a path instead of the name"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
