"""The local file of a catalogue entry: from the cache, or downloaded once and verified before use.

Files of the Hugging Face Hub are left to ``huggingface_hub``. Files of other hosts go to the folder
``focalnet`` of the same cache, by a small downloader that resumes, so that one cache, one set of
environment variables (``HF_HOME``, ``HF_HUB_CACHE``, ``HF_HUB_OFFLINE``) and one clean-up serve both.

A file is checked by its sha256 each time it is used: the published one, or else the one recorded in
``focalnet/sha256.json``. Before a sum is recorded, the file must agree with what its host publishes of it (the
Hub's hash of its content; the digest and size of a GitHub release, where GitHub has them), and its content must be
weights of the entry: every tensor by name and shape.

This is one file because each step decides whether the next may trust the file.
"""

from __future__ import annotations

import dataclasses
import email.utils
import http.client
import json
import logging
import os
import queue
import re
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import huggingface_hub.utils
from filelock import FileLock
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from focalnet.errors import CheckpointError, DownloadError, UnknownName
from focalnet.files import write
from focalnet.weights.cache import folder, has_hash, hub_hash, not_writable, of_source, quiet, unreachable
from focalnet.weights.catalogue import Entry, Source, find
from focalnet.weights.checkpoint import Checkpoint, read
from focalnet.weights.files import sha256_of
from focalnet.weights.labels import class_names

ATTEMPTS = 4
WAIT = 0.5  # seconds before the second attempt; doubled each time
LONGEST_WAIT = 60.0  # seconds that a server may ask to wait before the next attempt
TIMEOUT = 30.0  # seconds without a byte
ANSWER = 120.0  # seconds until the head of the answer is there
WINDOW = 60.0  # seconds over which the rate is measured
SLOWEST = 1024.0  # bytes a second, in each window
LONGEST = 24 * 3600.0  # seconds for a file; the next run goes on
LARGEST = 16 << 30  # bytes; the largest published file has 3 GB
GITHUB = "https://api.github.com"
_CHUNK = 1 << 20
_OFFLINE = "offline (HF_HUB_OFFLINE is set)"
_TRY_AGAIN = (http.HTTPStatus.REQUEST_TIMEOUT, http.HTTPStatus.TOO_EARLY, http.HTTPStatus.TOO_MANY_REQUESTS)

logger = logging.getLogger(__name__)


class _SourceFailed(Exception):
    """A source did not serve the file; the next one is tried."""


def fetch(name: str, **settings: Any) -> Checkpoint:
    """Reads a published checkpoint of the catalogue; downloads it where it is not cached.

    Raises:
        UnknownName: no such entry.
        CheckpointError: an entry of a task this version has no model for, or a damaged file.
        DownloadError: no source gave the file.
    """
    entry = find(name)
    if not entry.loadable:
        raise CheckpointError(
            f'"{name}" is listed only: this version has no model for it; the task "{entry.task}" will load it '
            f"({'a host still serves it' if entry.available else 'its host is gone'})"
        )
    path = local_file(entry)
    checkpoint = _read(entry, path, **settings)
    if checkpoint.layout == "native":
        return checkpoint
    card = entry.card(source=path.name)
    if len(card.class_names) != checkpoint.num_classes:
        card = dataclasses.replace(card, class_names=(), category_ids=())
    unsettled = {setting: text for setting, text in entry.unsettled.items() if setting not in settings}
    return dataclasses.replace(checkpoint, card=card, unsettled=unsettled)


def _read(entry: Entry, path: Path, **settings: Any) -> Checkpoint:
    architecture = None if entry.embedded else entry.network or entry.architecture
    return read(path, architecture=architecture, **{**entry.settings, **settings})


def local_file(entry: Entry) -> Path:
    """The entry's local file; downloads it if it is not cached.

    Raises:
        DownloadError: no source served it; the message says which file to put where.
    """
    if entry.embedded is not None:
        if not entry.embedded.is_file():
            raise DownloadError(f"{entry.name}: this installation lacks {entry.embedded}; install focalnet again")
        return entry.embedded
    failures: dict[str, list[str]] = {}  # hosts by what they said
    for source in sorted(entry.sources, key=lambda source: of_source(source) is None):  # cached files first
        try:
            cached = of_source(source)
            if cached is None:
                return _get(entry, source)
            _verify(entry, source, cached)
            return cached
        except _SourceFailed as failed:
            logger.info("%s: %s", source.address, failed)
            failures.setdefault(str(failed), []).append(urlsplit(source.address).hostname or source.address)
    raise DownloadError(_by_hand(entry, failures))


def _get(entry: Entry, source: Source) -> Path:
    """Downloads a file, and leaves nothing of one that is refused."""
    if source.dead:
        raise _SourceFailed(f"gone, {source.dead}")
    if not constants.HF_HUB_OFFLINE and (reason := unreachable(constants.ENDPOINT if source.hub else str(source.url))):
        raise _SourceFailed(reason)
    try:
        return _from_hub(entry, source) if source.hub else _from_host(entry, source)
    except OSError as error:
        if advice := not_writable(error):
            raise DownloadError(f"{source.file}: {advice}") from error
        raise _SourceFailed(_first_line(error)) from error


def _from_hub(entry: Entry, source: Source) -> Path:
    try:
        with quiet():
            path = Path(huggingface_hub.hf_hub_download(str(source.hub), source.file, repo_type=source.repo_type))
    except LocalEntryNotFoundError as error:
        raise _SourceFailed(_OFFLINE if constants.HF_HUB_OFFLINE else "no connection") from error
    except OSError:
        raise
    except Exception as error:  # some errors of its HTTP library pass through; the library depends on the version
        raise _SourceFailed(_first_line(error)) from error
    try:
        _verify(entry, source, path)
    except _SourceFailed:
        for wrong in (path.resolve(), path):  # the content, and the link to it
            wrong.unlink(missing_ok=True)
        raise
    return path


def _from_host(entry: Entry, source: Source) -> Path:
    if constants.HF_HUB_OFFLINE:
        raise _SourceFailed(_OFFLINE)
    folder().mkdir(parents=True, exist_ok=True)
    with FileLock(folder() / f"{source.file}.lock"):  # a second process waits here, and then finds the file
        return of_source(source) or _download(entry, source)


def _download(entry: Entry, source: Source) -> Path:
    """Downloads to ``*.part``, again and again from where it broke off, and moves it in place when it is verified."""
    target = folder() / source.file
    part = target.with_name(target.name + ".part")
    try:
        _complete(source, part)
    except _SourceFailed:
        if part.exists() and not part.stat().st_size:  # else the next run goes on with it
            part.unlink()
        raise
    try:
        _verify(entry, source, part)
    except _SourceFailed:
        part.unlink()
        raise
    os.replace(part, target)
    return target


def _complete(source: Source, part: Path) -> None:
    """Asks for a file until it is there; raises ``_SourceFailed`` for a server that never gives it."""
    for attempt in range(ATTEMPTS):
        last = attempt + 1 == ATTEMPTS
        wait: float | None = None
        try:
            _continue(source, part)
            return
        except urllib.error.HTTPError as error:
            said = f"HTTP {error.code} {' '.join(str(error.reason).split())}"
            wait = _wanted_wait(error.headers.get("Retry-After"))
            if wait is not None and wait > LONGEST_WAIT and error.code in (*_TRY_AGAIN, 503):
                raise _SourceFailed(f"{said}, to be asked again in {wait:.0f} s: run again then") from error
            if last or (error.code < 500 and error.code not in _TRY_AGAIN):
                raise _SourceFailed(said) from error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ValueError) as error:
            if last:  # ValueError: of a header that is none
                raise _SourceFailed(f"{_first_line(error)}; run again to resume") from error
        time.sleep(WAIT * 2**attempt if wait is None else wait)


def _wanted_wait(text: str | None) -> float | None:
    """Seconds that a header ``Retry-After`` asks for: a number of them, or a date; None for anything else."""
    if text is None:
        return None
    if re.fullmatch(r"\s*\d{1,9}\s*", text):
        return float(text)
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return None


def _continue(source: Source, part: Path) -> None:
    """Appends to ``part`` what is missing of the source's file.

    Raises:
        ConnectionError: it broke off before the end, was too slow, or sent something else than was asked for.
        OSError: other errors of the network, the server or the disk.
    """
    etag = part.with_name(part.name + ".etag")
    known = etag.read_text(encoding="latin-1") if etag.exists() else None
    if known is None and source.sha256 is None:
        part.unlink(missing_ok=True)  # nothing would tell that the rest is of another file
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "focalnet", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if known is not None:
            headers["If-Range"] = known  # another file by now? then the server sends it from the start
    try:
        response = _answer(urllib.request.Request(str(source.url), headers=headers))
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            part.unlink()  # longer than the file, or complete but unmarked: start over
            etag.unlink(missing_ok=True)
            raise ConnectionError("the part downloaded before does not belong to this file") from error
        raise
    with response, part.open("ab") as file:
        tag = response.headers.get("ETag", "")
        tag = "" if tag.startswith("W/") else tag
        if response.status == http.HTTPStatus.OK:
            have = 0
            total = response.length
            file.truncate(0)
        else:
            total = _range_total(response, have)
            if total is None or (tag and known and tag != known):
                file.truncate(0)
                etag.unlink(missing_ok=True)
                raise ConnectionError("it sent another part than was asked for, or one of another file")
        _check_head(response, total)
        if tag:
            etag.write_text(tag, encoding="latin-1")
        _copy(response, file, have, total)
    etag.unlink(missing_ok=True)


def _range_total(response: Any, have: int) -> int | None:
    """Bytes of the whole file by the head of a partial answer; None unless it is what follows the first ``have``."""
    text = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"\s*bytes\s+(\d{1,18})-(\d{1,18})/(\d{1,18})\s*", text)
    if response.status != http.HTTPStatus.PARTIAL_CONTENT or not have or match is None:
        return None
    first, last, total = map(int, match.groups())
    fits = first == have and first <= last < total and response.length in (None, last - first + 1)
    return total if fits else None


def _check_head(response: Any, total: int | None) -> None:
    """Raises ``_SourceFailed`` for an answer that cannot be the file, whatever follows."""
    kind = response.headers.get_content_type()
    if kind in ("text/html", "application/xhtml+xml"):
        raise _SourceFailed(f"it sent a web page ({kind}), not the file")
    coding = response.headers.get("Content-Encoding", "identity")
    if coding != "identity":
        raise _SourceFailed(f"it sent the file encoded as {coding}, which was not asked for")
    if total is not None and total > LARGEST:
        raise _SourceFailed(f"it announced {total} bytes, more than any file of weights has")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects from https to https only, and from http to either."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new not in (old, "https"):
            raise ValueError(f"a redirection from {old} to {new or 'nowhere'} is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except ValueError as error:  # also that of an address that is none
            raise urllib.error.HTTPError(req.full_url, code, f"{msg} - {error}", headers, fp) from error

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _answer(request: urllib.request.Request) -> Any:
    """The answer to a request once its head is there, which a server may also send byte by byte."""
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(urllib.request.build_opener(_SafeRedirects).open(request, timeout=TIMEOUT))
        except BaseException as error:  # raised where the answer is waited for
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=ANSWER)
    except queue.Empty:
        raise TimeoutError(f"no answer within {ANSWER:g} s") from None
    if isinstance(answer, urllib.error.HTTPError):
        answer.close()  # what comes with an error is not read
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _copy(response: Any, file: IO[bytes], have: int, total: int | None) -> None:
    # Obeys HF_HUB_DISABLE_PROGRESS_BARS; disable=None shows the bar on a terminal only.
    bar: Any = huggingface_hub.utils.tqdm  # type: ignore[attr-defined]
    begun = since = time.monotonic()
    before = have
    with bar(total=total, initial=have, unit="B", unit_scale=True, disable=None) as progress:
        while chunk := response.read1(_CHUNK):  # what is there: a whole chunk may be long in coming
            file.write(chunk)
            have += len(chunk)
            progress.update(len(chunk))
            if have > LARGEST:
                file.truncate(0)
                raise _SourceFailed(f"it sent more than {LARGEST} bytes, more than any file of weights has")
            now = time.monotonic()
            if now - since >= WINDOW:
                if have - before < SLOWEST * (now - since):
                    raise TimeoutError(f"it sent {(have - before) / (now - since):.0f} bytes a second")
                since, before = now, have
            if now - begun >= LONGEST:
                raise _SourceFailed(f"not complete after {LONGEST:g} s; run again to resume")
    file.flush()
    os.fsync(file.fileno())
    if total is not None and have != total:
        raise ConnectionError(f"broke off after {have} of {total} bytes")


def _verify(entry: Entry, source: Source, path: Path) -> None:
    """Raises ``_SourceFailed`` unless the file is what the source has; records the sha256 of one seen first."""
    actual = sha256_of(path)
    expected = source.sha256 or _record().get(source.address)
    if expected is None:
        _check_published(source, path, actual)
        _check_content(entry, path)
        _write_record(source, actual)
    elif actual != expected:
        fresh = path.suffix == ".part"
        logger.warning("%s does not have the sha256 %s that %s had or should have", path, expected, source.address)
        raise _SourceFailed(
            f"the downloaded file does not have the sha256 {expected}"
            if fresh
            else f"{path} does not have the sha256 {expected}; delete it to download it again"
        )


def _check_published(source: Source, path: Path, sha256: str) -> None:
    """Compares a file with what its host publishes of it, if anything."""
    if source.hub:
        published = hub_hash(path)
        if published not in (None, sha256) and not has_hash(path, str(published)):
            raise _SourceFailed(f"what it sent has not the hash {published} that the Hub gives for it")
    elif path.suffix == ".part":
        size, digest = _github_asset(str(source.url))
        if size not in (None, path.stat().st_size) or digest not in (None, f"sha256:{sha256}"):
            raise _SourceFailed(f"what it sent is not the file of {size} bytes and {digest} that GitHub lists")


def _github_asset(url: str) -> tuple[int | None, str | None]:
    """Size in bytes and digest of a file of a GitHub release; None for what GitHub does not say."""
    parts = re.fullmatch(r"https://github\.com/([^/]+/[^/]+)/releases/download/([^/]+)/([^/]+)", url)
    if parts is None:
        return None, None
    repository, tag, name = parts.groups()
    try:
        with _answer(urllib.request.Request(f"{GITHUB}/repos/{repository}/releases/tags/{tag}")) as response:
            assets = {asset["name"]: asset for asset in json.loads(response.read(_CHUNK))["assets"]}
        asset = assets[unquote(name)]
        return asset["size"], asset.get("digest")
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, _SourceFailed) as error:
        logger.info("%s: GitHub does not say its size and digest: %s", url, error)  # it answers 60 times an hour
        return None, None


def _check_content(entry: Entry, path: Path) -> None:
    """Raises ``_SourceFailed`` unless a file holds every tensor of the entry's network, by name and shape."""
    try:
        classes = _read(entry, path).num_classes
    except (CheckpointError, UnknownName) as error:
        raise _SourceFailed(f"what it has is refused: {str(error).removeprefix(f'{path}: ')}") from error
    known = len(class_names(entry.labels))
    if classes not in (0, known):
        raise _SourceFailed(f"what it has is refused: a network of {classes} classes, not {known} ({entry.labels})")


def _record() -> dict[str, str]:
    """The sha256 of the files that were used on this machine, by the addresses they came from."""
    book = folder() / "sha256.json"
    try:
        known = json.loads(book.read_text(encoding="utf-8")) if book.exists() else {}
        return {address: str(sha256) for address, sha256 in known.items()}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        logger.info("the record %s cannot be read: %s", book, error)
        return {}


def _write_record(source: Source, sha256: str) -> None:
    book = folder() / "sha256.json"
    try:
        folder().mkdir(parents=True, exist_ok=True)
        with FileLock(f"{book}.lock"):
            content = json.dumps({**_record(), source.address: sha256}, indent=1, sort_keys=True)
            write(book, content.encode(), CheckpointError)
    except (OSError, CheckpointError) as error:  # a cache shared read-only
        logger.info("the sha256 of %s could not be recorded in %s: %s", source.address, book, error)


def _by_hand(entry: Entry, failures: dict[str, list[str]]) -> str:
    """The error message: what failed, and which file to put where."""
    best = min(entry.sources, key=lambda source: (source.dead is not None, source.url is None))
    if best.dead:
        advice = f"if you have {best.file}, put it at {folder() / best.file}"
    elif best.url:
        advice = f"put {best.file} ({best.url}) at {folder() / best.file}"
    else:
        advice = f"download {best.address} by other means"
    reasons = "; ".join(f"{', '.join(dict.fromkeys(hosts))}: {reason}" for reason, hosts in failures.items())
    return f"{entry.name} could not be downloaded ({reasons}): {advice}, or give a path instead of the name"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
