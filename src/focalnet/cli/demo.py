"""``focalnet demo``: serves a web page that shows what the network sees."""

from __future__ import annotations

from typing import Annotated

import typer

from focalnet.cli import DEFAULT_MODEL
from focalnet.cli.terminal import say


def demo(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help=f"A name in 'focalnet models', or a weights file; repeat it to compare; default: {DEFAULT_MODEL}.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free one.")] = 7860,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets others on your network use the page.")
    ] = "127.0.0.1",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; default: a GPU if there is one.")] = None,
) -> None:
    """Serves a web page that shows what the network sees.

    Drop an image to see predictions, heat maps by several methods, and gates. Works offline; Ctrl-C ends it.
    """
    from focalnet.errors import require_installed

    require_installed("gradio", "demo")  # before models are loaded

    from focalnet.demo import load_models, serve
    from focalnet.demo.serving import free_port

    free_port(host, port)
    names = model or [DEFAULT_MODEL]
    serve(load_models(names, device), host, port, lambda address: say(f"open {address} (Ctrl-C ends the page)"))
