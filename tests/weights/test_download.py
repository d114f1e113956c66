"""Downloads against a local server that misbehaves on purpose."""

from __future__ import annotations

import hashlib
import http.server
import json
import logging
import multiprocessing
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from focalnet import weights
from focalnet.errors import DownloadError
from focalnet.weights import download
from focalnet.weights.catalogue import Entry, Source

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Behaviour:
    """What the server does; tests change it, and read what was asked."""

    content: bytes = CONTENT
    etag: str | None = '"v1"'
    ranges: bool = True
    break_after: list[int] = field(default_factory=list)  # bytes of each response before it hangs up
    status: list[int] = field(default_factory=list)  # error codes of the first responses
    missing: set[str] = field(default_factory=set)
    delay: float = 0.0
    asked: list[str | None] = field(default_factory=list)  # the Range header of each request


class Handler(http.server.BaseHTTPRequestHandler):
    behaviour: Behaviour

    def do_GET(self) -> None:
        b = self.behaviour
        b.asked.append(self.headers.get("Range"))
        time.sleep(b.delay)
        if self.path.lstrip("/") in b.missing:
            return self.send_error(404)
        if b.status:
            return self.send_error(b.status.pop(0))
        start = self._start(b)
        if start > len(b.content):
            return self.send_error(416)
        body = b.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(b.content) - 1}/{len(b.content)}")
        self.send_header("X-Repo-Commit", "0" * 40)  # the Hub's own, which others ignore
        if b.etag:
            self.send_header("ETag", b.etag)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: b.break_after.pop(0)] if b.break_after else body)
        self.close_connection = True
        return None

    do_HEAD = do_GET

    def _start(self, b: Behaviour) -> int:
        wanted = self.headers.get("Range")
        current = self.headers.get("If-Range", b.etag) == b.etag
        return int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and b.ranges and current else 0

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[Behaviour, str]]:
    behaviour = Behaviour()
    handler = type("Handler", (Handler,), {"behaviour": behaviour})
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield behaviour, f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(download, "WAIT", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "_check_content", lambda *_: None)  # tests/attacks/test_downloads.py is about that
    return tmp_path / "hub" / "focalnet"


def entry(*sources: Source) -> Entry:
    return Entry(name="x.y", task="classification", architecture="focalnet_nano", labels="cifar10", sources=sources)


def at(address: str, file: str = "x.pth", sha256: str | None = SHA256) -> Source:
    return Source(file=file, url=f"{address}/{file}", sha256=sha256)


def files(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if not path.name.endswith(".lock")}


def test_a_file_is_fetched_once(server: tuple[Behaviour, str], cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    behaviour, address = server
    wanted = entry(at(address))
    assert weights.cached(wanted) is None
    for _ in range(2):
        assert download.local_file(wanted).read_bytes() == CONTENT
    assert behaviour.asked == [None]
    assert capfd.readouterr() == ("", "")  # progress is for terminals
    assert weights.cached(wanted) == cache / "x.pth"
    assert files(cache) == {"x.pth"}


def test_broken_half_way_and_resumed(server: tuple[Behaviour, str], cache: Path) -> None:
    behaviour, address = server
    behaviour.break_after = [500_000, 100]
    assert download.local_file(entry(at(address))).read_bytes() == CONTENT
    assert behaviour.asked == [None, "bytes=500000-", "bytes=500100-"]
    assert files(cache) == {"x.pth"}


def test_broken_for_good_then_resumed_by_the_next_run(server: tuple[Behaviour, str], cache: Path) -> None:
    behaviour, address = server
    behaviour.break_after = [1000, 0, 0, 0]
    with pytest.raises(DownloadError, match=r"broke off after 1000 of 1048576 bytes; run again to resume"):
        download.local_file(entry(at(address)))
    assert files(cache) == {"x.pth.part", "x.pth.part.etag"}
    assert download.local_file(entry(at(address))).read_bytes() == CONTENT
    assert behaviour.asked[-1] == "bytes=1000-"


def test_another_file_by_the_time_of_resuming(server: tuple[Behaviour, str], cache: Path) -> None:
    behaviour, address = server
    behaviour.break_after = [1000, 0, 0, 0]
    with pytest.raises(DownloadError):
        download.local_file(entry(at(address, sha256=None)))
    behaviour.content, behaviour.etag = CONTENT[::-1], '"v2"'
    assert download.local_file(entry(at(address, sha256=None))).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_a_server_that_ignores_range(server: tuple[Behaviour, str], etag: str | None) -> None:
    behaviour, address = server
    behaviour.ranges, behaviour.etag, behaviour.break_after = False, etag, [700_000]
    assert download.local_file(entry(at(address))).read_bytes() == CONTENT
    assert behaviour.asked == [None, "bytes=700000-"]


def test_a_part_longer_than_the_file(server: tuple[Behaviour, str], cache: Path) -> None:
    _, address = server
    cache.mkdir(parents=True)
    (cache / "x.pth.part").write_bytes(b"?" * (len(CONTENT) + 1))
    assert download.local_file(entry(at(address))).read_bytes() == CONTENT


def test_a_wrong_hash_is_refused_and_removed(server: tuple[Behaviour, str], cache: Path) -> None:
    behaviour, address = server
    behaviour.content = b"?" + CONTENT[1:]
    with pytest.raises(DownloadError, match=f"does not have the sha256 {SHA256}"):
        download.local_file(entry(at(address)))
    assert files(cache) == set()


def test_a_hash_unknown_is_recorded_and_checked_from_then_on(server: tuple[Behaviour, str], cache: Path) -> None:
    _, address = server
    wanted = entry(at(address, sha256=None))
    path = download.local_file(wanted)
    assert json.loads((cache / "sha256.json").read_text()) == {f"{address}/x.pth": SHA256}
    path.write_bytes(b"?" + CONTENT[1:])
    with pytest.raises(DownloadError, match=f"does not have the sha256 {SHA256}; delete it to download it again"):
        download.local_file(wanted)
    path.unlink()
    assert download.local_file(wanted).read_bytes() == CONTENT


def test_a_damaged_record_does_not_stop_anyone(
    server: tuple[Behaviour, str], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, address = server
    cache.mkdir(parents=True)
    (cache / "sha256.json").write_text("{")
    with caplog.at_level(logging.INFO):
        assert download.local_file(entry(at(address, sha256=None))).read_bytes() == CONTENT
    assert "cannot be read" in caplog.text


def test_errors_of_the_server_are_tried_again(server: tuple[Behaviour, str]) -> None:
    behaviour, address = server
    behaviour.status = [503, 500]
    assert download.local_file(entry(at(address))).read_bytes() == CONTENT


def test_a_missing_file_falls_through_to_the_next_source(server: tuple[Behaviour, str], cache: Path) -> None:
    behaviour, address = server
    behaviour.missing = {"first.pth"}
    dead = Source(file="dead.pth", url=f"{address}/dead.pth", dead="switched off")
    path = download.local_file(entry(dead, at(address, "first.pth"), at(address, "second.pth")))
    assert path == cache / "second.pth"
    assert len(behaviour.asked) == 2  # the dead one was not asked, and 404 was believed at once


def test_what_is_cached_goes_before_what_is_listed_first(server: tuple[Behaviour, str], cache: Path) -> None:
    behaviour, address = server
    cache.mkdir(parents=True)
    (cache / "second.pth").write_bytes(CONTENT)
    assert download.local_file(entry(at(address, "first.pth"), at(address, "second.pth"))) == cache / "second.pth"
    assert behaviour.asked == []


def test_everything_failing_says_what_to_put_where(server: tuple[Behaviour, str], cache: Path) -> None:
    behaviour, address = server
    behaviour.missing = {"x.pth"}
    unreachable = Source(file="y.pth", url="http://127.0.0.1:9/y.pth")
    with pytest.raises(DownloadError) as error:
        download.local_file(entry(at(address), unreachable))
    message = str(error.value)
    assert "HTTP 404" in message
    assert "refused" in message
    assert f"put x.pth ({address}/x.pth) at {cache / 'x.pth'}, or give a path instead of the name" in message
    assert "\n" not in message


def test_a_file_put_there_by_hand_is_taken(cache: Path) -> None:
    gone = entry(Source(file="x.pth", url="https://gone.example/x.pth", dead="switched off"))
    with pytest.raises(DownloadError, match=rf"gone, switched off\): if you have x\.pth, put it at {cache}/x\.pth"):
        download.local_file(gone)
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "x.pth").write_bytes(CONTENT)
    assert download.local_file(gone) == cache / "x.pth"


def test_offline_nothing_is_asked(server: tuple[Behaviour, str], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    behaviour, address = server
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub = Source(file="model.safetensors", hub="someone/something")
    with pytest.raises(DownloadError, match=rf"offline \(HF_HUB_OFFLINE is set\).*put x\.pth \(.*\) at {cache}/x\.pth"):
        download.local_file(entry(at(address), hub))
    assert behaviour.asked == []


def test_a_full_disk_is_said_and_the_part_kept(
    server: tuple[Behaviour, str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, address = server
    copy = download._copy

    def full(response: Any, file: Any, have: int, total: int | None) -> None:
        file.write(response.read(1000))
        file.flush()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "_copy", full)
    with pytest.raises(DownloadError, match=r"no space left in .*HF_HUB_CACHE.*resumes where it stopped"):
        download.local_file(entry(at(address)))
    monkeypatch.setattr(download, "_copy", copy)
    assert download.local_file(entry(at(address))).read_bytes() == CONTENT


def test_a_cache_that_cannot_be_written(
    server: tuple[Behaviour, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, address = server
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match=r"x\.pth: .*/file cannot be written \(.*\); set HF_HUB_CACHE"):
        download.local_file(entry(at(address)))


def _fetch_in_process(cache: str, address: str, results: Any) -> None:
    constants.HF_HUB_CACHE = cache
    results.put(download.local_file(entry(at(address))).read_bytes() == CONTENT)


def test_two_processes_at_once_download_once(server: tuple[Behaviour, str], cache: Path) -> None:
    behaviour, address = server
    behaviour.delay = 0.5
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_fetch_in_process, args=(str(cache.parent), address, results)) for _ in "ab"]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [True, True]
    for process in processes:
        process.join()
    assert behaviour.asked == [None]
    assert files(cache) == {"x.pth"}


def test_the_hub_route(server: tuple[Behaviour, str], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    behaviour, address = server
    behaviour.etag = f'"{SHA256}"'
    monkeypatch.setattr(constants, "ENDPOINT", address)  # what HF_ENDPOINT sets
    template = "{endpoint}/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template.replace("{endpoint}", address))
    wanted = entry(Source(file="model.safetensors", hub="someone/something", sha256=SHA256))
    assert weights.cached(wanted) is None

    path = download.local_file(wanted)

    assert path.read_bytes() == CONTENT
    assert path == weights.cached(wanted)
    assert path.is_relative_to(cache.parent / "models--someone--something")
    asked = len(behaviour.asked)
    assert download.local_file(wanted) == path
    assert len(behaviour.asked) == asked  # from the cache, without going online


def test_a_repository_that_is_gone(server: tuple[Behaviour, str], monkeypatch: pytest.MonkeyPatch) -> None:
    behaviour, address = server
    behaviour.missing = {"someone/something/resolve/main/x.bin"}
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = "{endpoint}/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template.replace("{endpoint}", address))
    with pytest.raises(DownloadError, match=r"download https://huggingface\.co/someone/something"):
        download.local_file(entry(Source(file="x.bin", hub="someone/something")))


def test_errors_of_libraries_below_the_hub_s(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> str:
        raise RuntimeError("an error of a library below\nwith details")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fails)
    source = Source(file="x.bin", hub="someone/demo", repo_type="space")
    with pytest.raises(DownloadError, match=r"a library below\): download https://huggingface.co/spaces/someone/demo"):
        download.local_file(entry(source))
