"""What reaches Gradio's server: the page's own requests, within limits, about files of the temporary folder only.

Gradio has routes that this page does not use (fetching addresses for clients, recording, monitoring, ...). They are not
reachable: a request that is not on the list below gets no further than this file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio

from focalnet.demo.uploads import MOST_BYTES, Sweeper, inside

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MOST_SETTINGS = 1 << 18  # bytes of a request without a file
FORM = 1 << 16  # bytes around the file of an upload
LOOPBACK = ("127.0.0.1", "localhost", "::1")
READ = re.compile(
    r"/(?:|config/?|theme\.css|favicon\.ico|robots\.txt|manifest\.json|(?:assets|static|svelte)/[\w./@+-]+"
    r"|gradio_api/(?:info/?|startup-events|theme\.css|app_id/?|heartbeat/\w+|queue/data|upload_progress|file=.+))",
    re.DOTALL,
)
WRITTEN = re.compile(r"/gradio_api/(?:upload|queue/join|reset/?|cancel)/?")
PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
FILE_POLICY = "default-src 'none'; sandbox; frame-ancestors 'none'"


class Gate:
    """ASGI middleware that passes what the page needs and refuses the rest.

    Args:
        app: what comes behind.
        folder: the only folder whose files are served or taken as uploads.
        sweeper: keeps the folder small.
        loopback: whether the page is for this machine only: then a request must be addressed to it by name, so that
            another site cannot reach the page through a name that points here.
    """

    def __init__(self, app: Any, folder: Path, sweeper: Sweeper, loopback: bool) -> None:
        self.app, self.folder, self.sweeper, self.loopback = app, folder, sweeper, loopback

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._request(scope, receive, send)
        elif scope["type"] == "websocket":  # the page opens none
            await send({"type": "websocket.close", "code": 1008})

    async def _request(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        method, path = scope["method"], scope["path"]
        refusal = self._refusal(method, path, headers)
        if refusal is None and method == "POST":
            upload = path.startswith("/gradio_api/upload")
            refusal = _too_large(headers, MOST_BYTES + FORM if upload else MOST_SETTINGS)
            if refusal is None and upload:
                await anyio.to_thread.run_sync(self.sweeper.sweep)
            elif refusal is None:
                body = await _body(receive)
                if body is None:  # the client left
                    return
                if not self._own_files(body):
                    refusal = 403, "a file that was not uploaded here"
                receive = _replayed(body, receive)
        if refusal is not None:
            await _refuse(send, *refusal)
            return
        policy = FILE_POLICY if "/file=" in path else PAGE_POLICY
        await self.app(scope, receive, _with_headers(send, policy))

    def _refusal(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self.loopback and _name_of(f"//{host}") not in LOOPBACK:
            return 403, "this page is for the machine that it runs on"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return 403, "a request of another site"
        routes = {"GET": READ, "HEAD": READ, "POST": WRITTEN}.get(method)
        if routes is None or not routes.fullmatch(path):
            return 404, "no such page"
        _, is_file, name = path.partition("/gradio_api/file=")
        if is_file and inside(name, self.folder) is None:
            return 403, "not a file of this page"
        return None

    def _own_files(self, body: bytes) -> bool:
        """Whether all files that a request names are in the folder."""
        if not body:
            return True
        try:
            paths = list(_paths(json.loads(body)))
        except (ValueError, RecursionError):
            return False
        return all(isinstance(path, str) and inside(path, self.folder) is not None for path in paths)


def _paths(value: Any) -> Iterator[Any]:
    """What a JSON value names as paths of files, in any depth."""
    if isinstance(value, dict):
        for key, part in value.items():
            if key == "path" and part is not None:
                yield part
            yield from _paths(part)
    elif isinstance(value, list):
        for part in value:
            yield from _paths(part)


def _too_large(headers: dict[str, str], most: int) -> tuple[int, str] | None:
    """Why a body is refused by its announced size; the server reads no more than is announced."""
    announced = headers.get("content-length", "")
    if not announced.isdecimal():
        return 411, "a request without its length"
    return (413, f"more than {most} bytes") if len(announced) > 12 or int(announced) > most else None


def _name_of(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:  # brackets without an address in them
        return None


async def _body(receive: Receive) -> bytes | None:
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was read already, then what comes after it."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = f"{reason}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    headers.append((b"connection", b"close"))  # what is left of the body is not read
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _with_headers(send: Send, policy: str) -> Send:
    added = [
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
    ]

    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *added]
        await send(message)

    return with_headers
