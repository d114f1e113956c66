"""Starts the page's server, and leaves nothing behind when it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from focalnet import zoo
from focalnet.demo.explorer import Explorer, View
from focalnet.demo.uploads import MOST_BYTES, Sweeper, read_upload
from focalnet.errors import ConfigError, FocalNetError, require
from focalnet.inference.predictor import pick_device
from focalnet.models import Model

WAITING = 64  # requests in the queue; more are refused at once
SESSIONS = 100  # visitors whose page Gradio remembers
SETTINGS = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_MCP_SERVER": "False",
    "GRADIO_SHARE": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def load_models(names: Sequence[str], device: str | torch.device | None = None) -> dict[str, Model[Any, Any]]:
    """The models of the page by the names that it shows: of a file its last folder and its name.

    Args:
        names: what ``focalnet.load`` takes.
        device: where to put them; default: a GPU if there is one.

    Raises:
        FocalNetError: a model cannot be loaded, or cannot be shown.
    """
    chosen = pick_device(device)
    models: dict[str, Model[Any, Any]] = {}
    for name in dict.fromkeys(names):
        shown = "/".join(Path(name).parts[-2:])
        if shown in models:
            shown = f"{shown} ({len(models) + 1})"
        models[shown] = zoo.load(name).to(chosen).eval()
    return models


def serve(models: Mapping[str, Model[Any, Any]], host: str, port: int, started: Callable[[str], None]) -> None:
    """Serves the page until the process is interrupted or terminated.

    Args:
        models: by the names that the page shows.
        host: address of this machine to listen on.
        port: 0 for any free one.
        started: called with the page's address when it can be opened.

    Raises:
        FocalNetError: the address is taken or not of this machine, a model does not work, or Gradio is missing.
    """
    end = threading.Event()
    before = {number: signal.signal(number, lambda *_: end.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with running(models, host, port) as address:
            started(address)
            while not end.wait(1):  # in steps, so that signals are handled on every platform
                pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def running(models: Mapping[str, Model[Any, Any]], host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serves the page in other threads while the body of the ``with`` statement runs, and gives its address.

    Raises:
        FocalNetError: as ``serve``.
    """
    port = free_port(host, port)
    with tempfile.TemporaryDirectory(prefix="focalnet-demo-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        with _environment(
            {**SETTINGS, "GRADIO_TEMP_DIR": str(folder), "GRADIO_EXAMPLES_CACHE": str(folder / "examples")}
        ):
            require("gradio", "demo")
            from starlette.middleware import Middleware

            from focalnet.demo.gate import LOOPBACK, Gate
            from focalnet.demo.page import HERE, Page, theme

            explorer, sweeper = Explorer(models), Sweeper(folder)
            _warm(explorer)
            blocks = Page(explorer, folder, sweeper).blocks
            sweeper.keep()
            blocks.queue(default_concurrency_limit=1, max_size=WAITING)
            gate = Middleware(Gate, folder=folder, sweeper=sweeper, loopback=host in LOOPBACK)
            try:
                _, address, _ = blocks.launch(
                    server_name=host,
                    server_port=port,
                    share=False,
                    quiet=True,
                    show_error=True,
                    prevent_thread_lock=True,
                    max_file_size=MOST_BYTES,
                    allowed_paths=[],
                    state_session_capacity=SESSIONS,
                    footer_links=[],
                    run_history=False,
                    ssr_mode=False,
                    mcp_server=False,
                    pwa=False,
                    app_kwargs={"middleware": [gate]},
                    theme=theme(),
                    css_paths=[HERE / "page.css"],
                )
            except OSError as error:
                raise ConfigError(
                    f"the page cannot be served at {host}:{port} ({error}): choose another --port"
                ) from error
            try:
                yield address
            finally:
                blocks.close(verbose=False)


def free_port(host: str, port: int) -> int:
    """The port to listen on: the given one if it is free, any free one for 0.

    Raises:
        ConfigError: it is taken or not allowed, or the host is not this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
            found: int = probe.getsockname()[1]
            return found
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f'--host: "{host}" is not an address: give 127.0.0.1, or 0.0.0.0 for all networks') from error
    except OSError as error:
        reason = error.strerror or str(error)
        if isinstance(error, PermissionError):
            raise ConfigError(f"--port: {port} is not allowed ({reason}): choose one above 1023, or 0") from error
        raise ConfigError(
            f"--port: {host}:{port} cannot be listened on ({reason}): choose another --port, or 0 for any free one; "
            "--host takes an address of this machine"
        ) from error


def _warm(explorer: Explorer) -> None:
    """Explains an example by each model, so that the first visitor does not wait and a broken model is told at once."""
    from focalnet.demo.page import EXAMPLES, HERE

    folder = HERE / "examples"
    example = read_upload({"path": str(folder / EXAMPLES[0])}, folder)
    for name in explorer.models:
        study = explorer.study(name, example)
        if study.targets:
            explorer.map(View(name), example)
        if not study.explanation.blocks:
            raise FocalNetError(f"{name} has no blocks to explain")


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets variables of the environment, which Gradio reads, for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
