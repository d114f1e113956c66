"""``focalnet predict``: what do these pictures show?"""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from focalnet.cli import DEFAULT_MODEL
from focalnet.errors import ImageError
from focalnet.files import write

if TYPE_CHECKING:
    from focalnet.structures import Classification


class OnError(str, Enum):
    """What to do with a picture that cannot be read."""

    RAISE = "raise"
    SKIP = "skip"


def predict(
    paths: Annotated[list[str], typer.Argument(metavar="FILES|FOLDERS|GLOBS...", help="Pictures.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A name of 'focalnet models', or a weights file.")] = (
        DEFAULT_MODEL
    ),
    out: Annotated[
        Path | None, typer.Option(help="Folder for pictures with the result drawn on them, and predictions.json.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Classes shown, best first.")] = 5,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; default: a GPU if there is one.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures that go through the network at once.")] = 32,
    on_error: Annotated[OnError, typer.Option(help="A picture that cannot be read: stop, or leave it out.")] = (
        OnError.RAISE
    ),
) -> None:
    """Names what pictures show: the best classes and their scores."""
    from focalnet.data.images import find

    files = find(paths)  # before torch: a mistyped path is told at once

    from focalnet.inference import Predictor
    from focalnet.visualize import unique_names

    predictor = Predictor(model, device, batch_size=batch_size, top_k=top)
    skip = _report_skipped if on_error is OnError.SKIP else None
    names = dict(zip(map(str, files), unique_names(files), strict=True))
    predictions: list[dict[str, Any]] = []
    for result in predictor.stream(files, skip=skip):
        typer.echo(_text(result))
        entry = result.to_dict()
        if out is not None:
            entry["picture"] = str(result.save(out / f"{names[str(result.path)]}-prediction.png"))
        predictions.append(entry)
    if not predictions:
        raise ImageError(f"none of the {len(files)} pictures could be read")
    if out is not None:
        _write_json({"model": model, "predictions": predictions}, out / "predictions.json")
        typer.echo(f"wrote {len(predictions)} pictures and predictions.json to {out}")


def _text(result: Classification) -> str:
    """The file, and below it a line for each class."""
    ranked = zip(result.scores, result.names, strict=True)
    return "\n".join([str(result.path), *(f"  {100 * score:5.1f} %  {name}" for score, name in ranked)])


def _report_skipped(error: ImageError) -> None:
    typer.echo(f"skipped: {error}", err=True)


def _write_json(content: dict[str, Any], path: Path) -> None:
    write(path, json.dumps(content, indent=2, ensure_ascii=False).encode())
