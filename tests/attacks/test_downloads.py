"""A server that lies in every way we know: what it sends is refused in one line, and neither kept nor recorded."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

import focalnet
from focalnet import weights
from focalnet.errors import DownloadError
from focalnet.weights import download
from focalnet.weights.catalogue import Entry, Source

PAGE = b"<!doctype html><html><title>Sign in</title>" + b"<p>please</p>" * 200


def pickled(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def weights_of(name: str, **options: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return focalnet.create_model(name, **options).state_dict()


STATE = weights_of("focalnet_nano", num_classes=10)
TRUE = pickled({"model": STATE})


@dataclass
class Server:
    """What the handler does, and what it was asked."""

    answer: Callable[[Handler], None]
    address: str = ""
    asked: list[dict[str, str]] = field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    server_state: Server

    def do_GET(self) -> None:
        self.server_state.asked.append(dict(self.headers))
        self.close_connection = True
        try:
            self.server_state.answer(self)
        except OSError:  # the client has had enough
            pass

    do_HEAD = do_GET

    def send(self, body: bytes, status: int = 200, **headers: str) -> None:
        """An answer with an honest length, unless ``headers`` say another; None leaves a header out."""
        self.send_response(status)
        given = {"Content-Length": str(len(body)), **{k.replace("_", "-"): v for k, v in headers.items()}}
        for name, value in given.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def start(self) -> int:
        return int(self.headers["Range"].removeprefix("bytes=").rstrip("-")) if "Range" in self.headers else 0

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server(lambda handler: handler.send(TRUE))
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"server_state": state}))
    httpd.daemon_threads = True
    state.address = f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name, value in {"WAIT": 0.01, "LONGEST_WAIT": 1.0, "ANSWER": 1.0, "WINDOW": 0.2, "LONGEST": 1.5}.items():
        monkeypatch.setattr(download, name, value)
    return tmp_path / "hub" / "focalnet"


def entry(address: str, *, sha256: str | None = None, architecture: str = "focalnet_nano") -> Entry:
    source = Source(file="x.pth", url=f"{address}/x.pth", sha256=sha256)
    return Entry(name="x.y", task="classification", architecture=architecture, labels="cifar10", sources=(source,))


def left(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.suffix != ".lock"}


def refusal(entry: Entry) -> str:
    with pytest.raises(DownloadError) as error:
        download.local_file(entry)
    message = str(error.value)
    assert "\n" not in message
    assert "x.pth" in message
    assert "or give a path instead of the name" in message
    return message


# --- Content ----------------------------------------------------------------------------------------------------------


class Harmful:
    def __reduce__(self) -> Any:
        return (os.system, ("echo this runs",))


CONTENTS: dict[str, tuple[bytes, str]] = {
    "a web page": (PAGE, "a web page"),
    "an error in JSON": (b'{"error": "rate limited"}', "not a"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    "nothing": (b"", "the file is empty"),
    "zeros": (bytes(5000), "is refused"),
    "the first half": (TRUE[: len(TRUE) // 2], "not a readable checkpoint"),
    "all but the last byte": (TRUE[:-1], "not a readable checkpoint"),
    "noise": (hashlib.shake_256(b"0").digest(5000), "not a readable checkpoint"),
    "code": (pickled({"model": {**STATE, "x": Harmful()}}), "refused because it holds Python code"),
    "no tensors": (pickled({"model": {"epoch": 3}}), "holds no state dict"),
    "a tensor missing": (pickled({"model": {k: v for k, v in STATE.items() if k != "norm.bias"}}), "1 missing"),
    "a tensor of another shape": (pickled({"model": {**STATE, "norm.bias": torch.ones(3)}}), "1 of another shape"),
    "other classes": (pickled({"model": weights_of("focalnet_nano", num_classes=7)}), "7 classes, not 10"),
    "another network": (pickled({"model": weights_of("focalnet_nano", num_classes=10, embed_dim=8)}), "it is not a"),
}


@pytest.mark.parametrize("lie", CONTENTS)
def test_a_content_without_a_known_sum_must_be_the_weights(
    server: Server, cache: Path, lie: str, capsys: pytest.CaptureFixture[str], attacks: Callable[[int], None]
) -> None:
    attacks(1)
    content, reason = CONTENTS[lie]
    server.answer = lambda handler: handler.send(content)
    assert reason in refusal(entry(server.address))
    assert left(cache) == set()
    assert capsys.readouterr().out == ""  # nothing of it ran
    server.answer = lambda handler: handler.send(TRUE)
    assert download.local_file(entry(server.address)).read_bytes() == TRUE
    assert json.loads((cache / "sha256.json").read_text()) == {f"{server.address}/x.pth": sha256(TRUE)}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_wrong_file_put_there_by_hand_is_not_recorded(server: Server, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "x.pth").write_bytes(PAGE)
    assert "a web page" in refusal(entry(server.address))
    assert left(cache) == {"x.pth"}  # somebody's file is not deleted
    assert server.asked == []


# --- Heads and transfers ----------------------------------------------------------------------------------------------


def drip(handler: Handler, body: bytes, seconds: float) -> None:
    for byte in body:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(seconds)


def head_byte_by_byte(handler: Handler) -> None:
    drip(handler, b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 2000, 0.05)


def body_byte_by_byte(handler: Handler) -> None:
    handler.send(b"", Content_Length=str(len(TRUE)))
    drip(handler, TRUE[:1000], 0.05)


def just_fast_enough(handler: Handler) -> None:
    handler.send(b"", Content_Length=str(10**9))
    while True:
        handler.wfile.write(bytes(1000))
        time.sleep(0.02)


def chunked_and_cut(handler: Handler) -> None:
    handler.send(b"", Content_Length=None, Transfer_Encoding="chunked")
    handler.wfile.write(b"1000\r\n" + TRUE[:0x1000] + b"\r\nffff\r\n" + TRUE[:10])


def raw(answer: bytes) -> Callable[[Handler], None]:
    return lambda handler: handler.wfile.write(answer)


def status(code: int, **headers: str) -> Callable[[Handler], None]:
    return lambda handler: handler.send(b"", code, **headers)


def typed_page(handler: Handler) -> None:
    handler.send(PAGE, Content_Type="text/html; charset=utf-8")


HEADS: dict[str, tuple[Callable[[Handler], None], str]] = {
    "a web page that says so": (typed_page, "it sent a web page (text/html)"),
    "shorter than announced": (lambda h: h.send(TRUE[:999], Content_Length=str(len(TRUE))), "broke off after 999"),
    "longer than announced": (lambda h: h.send(TRUE, Content_Length="1000"), "not a readable checkpoint"),
    "without a length, cut": (lambda h: h.send(TRUE[:999], Content_Length=None), "not a readable checkpoint"),
    "chunks, cut": (chunked_and_cut, "IncompleteRead"),
    "a length that is no number": (lambda h: h.send(PAGE, Content_Length="many"), "a web page"),
    "a length of 5000 digits": (lambda h: h.send(PAGE, Content_Length="9" * 5000), "a web page"),
    "a negative length": (lambda h: h.send(PAGE, Content_Length="-5"), "a web page"),
    "more than any file has": (lambda h: h.send(b"", Content_Length=str(10**15)), "more than any file of weights"),
    "encoded": (lambda h: h.send(TRUE, Content_Encoding="gzip"), "encoded as gzip"),
    "a part that nobody asked for": (lambda h: h.send(TRUE, 206, Content_Range="bytes 0-9/10"), "another part"),
    "nothing with 204": (status(204), "another part"),
    "a redirect to a file": (status(302, Location="file:///etc/passwd"), "'file:///etc/passwd' is not allowed"),
    "a redirect to ftp": (
        status(302, Location="ftp://127.0.0.1/x.pth"),
        "a redirection from http to ftp is not followed",
    ),
    "a redirect to data": (status(302, Location="data:text/plain,x"), "is not allowed"),
    "a redirect to itself": (status(302, Location="/x.pth"), "infinite loop"),
    "a redirect to nowhere": (status(302, Location="http://[::1"), "IPv6"),
    "no HTTP": (raw(b"\x1b[2J\x00\x02" * 99), "\x1b[2J"),
    "no answer at all": (raw(b""), "Remote end closed"),
    "a head without end": (raw(b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 500), "got more than 100 headers"),
    "a line without end": (raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10**5), "line"),
    "a head byte by byte": (head_byte_by_byte, "no answer within 1 s"),
    "a body byte by byte": (body_byte_by_byte, "bytes a second"),
    "a body without end": (just_fast_enough, "not complete after 1.5 s; run again to resume"),
    "too many requests": (status(429), "HTTP 429"),
    "too many requests, come tomorrow": (status(429, Retry_After="86400"), "to be asked again in 86400 s"),
    "too many requests, come at a date": (
        lambda h: h.send(b"", 429, Retry_After=formatdate(time.time() + 3600, usegmt=True)),
        "to be asked again in 3",
    ),
    "busy, come in a number of 5000 digits": (status(503, Retry_After="9" * 5000), "HTTP 503"),
    "busy, come yesterday": (status(503, Retry_After="Mon, 01 Jan 1990 00:00:00 GMT"), "HTTP 503"),
}


@pytest.mark.parametrize("lie", HEADS)
def test_what_is_no_honest_answer_is_refused(
    server: Server, cache: Path, lie: str, attacks: Callable[[int], None]
) -> None:
    attacks(1)
    server.answer, reason = HEADS[lie]
    started = time.monotonic()
    message = refusal(entry(server.address))
    assert reason in message
    assert time.monotonic() - started < 30
    assert left(cache) <= {"x.pth.part", "x.pth.part.etag"}  # what the next run may go on with
    server.answer = lambda handler: handler.send(TRUE)
    assert download.local_file(entry(server.address)).read_bytes() == TRUE


def test_what_a_server_asks_to_wait_is_waited(server: Server) -> None:
    answers = iter([status(429, Retry_After="1"), status(503, Retry_After="0"), lambda handler: handler.send(TRUE)])
    server.answer = lambda handler: next(answers)(handler)
    started = time.monotonic()
    assert download.local_file(entry(server.address)).read_bytes() == TRUE
    assert 1 <= time.monotonic() - started < 5


def test_https_is_not_left_by_a_redirect() -> None:
    request = download.urllib.request.Request("https://example.org/x.pth")
    redirects = download._SafeRedirects()
    with pytest.raises(ValueError, match="from https to http"):
        redirects.redirect_request(request, io.BytesIO(), 302, "", {}, "http://example.org/x.pth")
    followed = redirects.redirect_request(request, io.BytesIO(), 302, "", {}, "https://example.org/y.pth")
    assert followed.full_url == "https://example.org/y.pth"


# --- Ranges -----------------------------------------------------------------------------------------------------------


def broken_off(handler: Handler) -> None:
    """Half of the file, to be gone on with."""
    handler.send(TRUE[: len(TRUE) // 2], Content_Length=str(len(TRUE)), ETag='"v1"')


def content_range(first: int, last: int, total: int | str = len(TRUE)) -> str:
    return f"bytes {first}-{last}/{total}"


def ranged(shift: int = 0, total: int | str = len(TRUE), **headers: Any) -> Callable[[Handler], None]:
    """Answers from another place than was asked for, or says so, or says another length of the whole file."""

    def answer(handler: Handler) -> None:
        start = handler.start()
        body = TRUE[start + shift :]
        given = {"Content_Range": content_range(start + shift, start + shift + len(body) - 1, total), "ETag": '"v1"'}
        handler.send(body, 206, **{**given, **headers})

    return answer


RANGES: dict[str, Callable[[Handler], None]] = {
    "from an earlier byte": ranged(-7),
    "from a later byte": ranged(7),
    "of another length": ranged(total=len(TRUE) - 1),
    "of unknown length": ranged(total="*"),
    "without saying which": ranged(Content_Range=None),
    "in words": ranged(Content_Range="the rest"),
    "of a number of 5000 digits": ranged(Content_Range=f"bytes {'9' * 5000}-{'9' * 5000}/{'9' * 5000}"),
    "of another file": ranged(ETag='"v2"'),
    "longer than it says": ranged(Content_Range=content_range(len(TRUE) // 2, len(TRUE) - 9)),
    "not satisfiable": status(416),
}


@pytest.mark.parametrize("lie", RANGES)
def test_a_wrong_range_is_thrown_away(server: Server, cache: Path, lie: str, attacks: Callable[[int], None]) -> None:
    attacks(1)

    def answer(handler: Handler) -> None:
        wanted = "Range" in handler.headers
        RANGES[lie](handler) if wanted else (broken_off if len(server.asked) == 1 else whole)(handler)

    def whole(handler: Handler) -> None:
        handler.send(TRUE, ETag='"v1"')

    server.answer = answer
    assert download.local_file(entry(server.address)).read_bytes() == TRUE
    assert ["Range" in asked for asked in server.asked] == [False, True, False]
    assert left(cache) == {"x.pth", "sha256.json"}


@pytest.mark.parametrize("etag", ['W/"v1"', None])
def test_without_a_mark_of_the_file_a_part_is_not_gone_on_with(server: Server, etag: str | None) -> None:
    def answer(handler: Handler) -> None:
        body = TRUE[:1000] if len(server.asked) == 1 else TRUE
        handler.send(body, Content_Length=str(len(TRUE)), ETag=etag)

    server.answer = answer
    assert download.local_file(entry(server.address)).read_bytes() == TRUE
    assert not any("Range" in asked for asked in server.asked)


@pytest.mark.parametrize("mark", ["", "\n\n", '"x"\r\nHost: elsewhere'])
def test_a_damaged_mark_of_a_part_harms_nobody(server: Server, cache: Path, mark: str) -> None:
    cache.mkdir(parents=True)
    (cache / "x.pth.part").write_bytes(b"?" * 100)
    (cache / "x.pth.part.etag").write_text(mark)
    try:
        assert download.local_file(entry(server.address)).read_bytes() == TRUE
    except DownloadError as error:
        refused = str(error)
        assert "\n" not in refused


# --- The Hub, and GitHub's own account --------------------------------------------------------------------------------


def hub(monkeypatch: pytest.MonkeyPatch, address: str) -> Entry:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = "{endpoint}/{repo_id}/resolve/{revision}/{filename}".replace("{endpoint}", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    source = Source(file="x.pth", hub="someone/something")
    return Entry(name="x.y", task="classification", architecture="focalnet_nano", labels="cifar10", sources=(source,))


@pytest.mark.parametrize(
    ("content", "etag", "reason"),
    [
        (PAGE, sha256(TRUE), "has not the hash"),
        (TRUE[:-1] + b"?", sha256(TRUE), "has not the hash"),
        (TRUE, "0" * 40, "has not the hash"),
        (PAGE, sha256(PAGE), "a web page"),
        (PAGE, "no hash", "a web page"),
    ],
)
def test_what_the_hub_sends_must_have_its_hash(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    content: bytes,
    etag: str,
    reason: str,
    attacks: Callable[[int], None],
) -> None:
    attacks(1)
    wanted = hub(monkeypatch, server.address)
    server.answer = lambda handler: handler.send(content, ETag=f'"{etag}"', X_Repo_Commit="0" * 40)
    with pytest.raises(DownloadError, match=reason):
        download.local_file(wanted)
    assert weights.cached(wanted) is None
    blobs = [path for path in tmp_path.rglob("blobs/*") if path.is_file()]
    assert blobs == []
    server.answer = lambda handler: handler.send(TRUE, ETag=f'"{sha256(TRUE)}"', X_Repo_Commit="0" * 40)
    assert download.local_file(wanted).read_bytes() == TRUE


def test_a_small_file_has_git_s_hash_on_the_hub(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    git = hashlib.sha1(f"blob {len(TRUE)}\0".encode() + TRUE).hexdigest()
    server.answer = lambda handler: handler.send(TRUE, ETag=f'"{git}"', X_Repo_Commit="0" * 40)
    assert download.local_file(hub(monkeypatch, server.address)).read_bytes() == TRUE


GITHUB_URL = "https://github.com/owner/repo/releases/download/v1/x.pth"


@pytest.mark.parametrize(
    ("assets", "expected"),
    [
        (b'{"assets": [{"name": "x.pth", "size": 7, "digest": "sha256:ab"}]}', (7, "sha256:ab")),
        (b'{"assets": [{"name": "x.pth", "size": 7}]}', (7, None)),
        (b'{"assets": []}', (None, None)),
        (b'{"message": "rate limited"}', (None, None)),
        (b"[]", (None, None)),
        (PAGE, (None, None)),
    ],
)
def test_what_github_says_of_a_release(
    server: Server, monkeypatch: pytest.MonkeyPatch, assets: bytes, expected: tuple[int | None, str | None]
) -> None:
    monkeypatch.setattr(download, "GITHUB", server.address)
    server.answer = lambda handler: handler.send(assets)
    assert download._github_asset(GITHUB_URL) == expected
    assert download._github_asset("https://example.org/x.pth") == (None, None)
    assert len(server.asked) == 1


@pytest.mark.parametrize("told", [(1, None), (None, "sha256:" + "0" * 64)])
def test_a_file_that_github_lists_otherwise_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch, cache: Path, told: tuple[int | None, str | None]
) -> None:
    monkeypatch.setattr(download, "_github_asset", lambda _: told)
    assert "that GitHub lists" in refusal(entry(server.address))
    assert left(cache) == set()
