"""``focalnet predict``: predicts the classes of images, the objects in them, or the class or segment of each pixel."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from focalnet.cli import DEFAULT_MODEL
from focalnet.cli.results import Ids, Results
from focalnet.cli.terminal import say
from focalnet.errors import ConfigError, FocalNetError, ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from focalnet.inference import Predictor


class OnError(str, Enum):
    """What to do with an image that cannot be read."""

    RAISE = "raise"
    SKIP = "skip"


def predict(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="FILES|FOLDERS|GLOBS...", help="Images; with a detector or segmenter also videos."),
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="A name of 'focalnet models', or a weights file.")] = (
        DEFAULT_MODEL
    ),
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for images with the result drawn on them, predictions.json, and: detections.json of "
            "objects; NAME.labels.png of classes; NAME.panoptic.png and panoptic.json of segments."
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Classes of an image shown, best first.")] = 5,
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Objects below are left out; 0 to evaluate.")] = 0.3,
    tile: Annotated[
        int | None, typer.Option(min=32, help="Predict tiles of so many pixels, one by one: for large images.")
    ] = None,
    overlap: Annotated[float, typer.Option(help="Share of a tile that its neighbor also covers.")] = 0.25,
    flip: Annotated[bool, typer.Option("--flip", help="Predict the mirrored image, too.")] = False,
    short_side: Annotated[
        list[int] | None, typer.Option(help="Predict it at this size in pixels; may be repeated.")
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(
            help="COCO annotations that give the ids of images and categories in detections.json or panoptic.json."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; default: a GPU if there is one.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images that go through the network at once.")] = None,
    max_megapixels: Annotated[
        int, typer.Option(min=1, help="Larger images are refused: a small broken file may claim any size.")
    ] = 200,
    on_error: Annotated[OnError, typer.Option(help="An image that cannot be read: stop, or leave it out.")] = (
        OnError.RAISE
    ),
) -> None:
    """Says what images show: their classes and scores.

    With a detector, which objects are where; with a segmenter, what each pixel is.
    """
    from focalnet.data.images import find

    files = find(paths)  # before torch: a mistyped path is told at once

    from focalnet import zoo
    from focalnet.inference import Predictor, Views
    from focalnet.inference.video import is_video
    from focalnet.visualize import unique_names

    network = zoo.load(model)
    views = Views(tile=tile, overlap=overlap, flip=flip, short_sides=tuple(short_side or ()))
    predictor = Predictor(network, device, batch_size=batch_size, top_k=top, min_score=min_score, views=views)
    videos = [file for file in files if is_video(file)]
    classifies = network.config.output == "classification"
    if videos and (out is None or classifies):
        raise ConfigError(
            f"{videos[0]}: a video needs a detector or segmenter, and --out for the video with the result"
        )
    results = Results(out, model, None if classifies else Ids(network, annotations))
    names = dict(zip(map(str, files), unique_names(files), strict=True))
    images = [file for file in files if file not in videos]
    skip = _report_skipped if on_error is OnError.SKIP else None
    with _sizes_up_to(max_megapixels):
        for result in predictor.stream(images, skip=skip):
            say(result.path, *(f"  {line}" for line in result.summary()))
            results.add(result, names[str(result.path)])
    for video in videos:
        assert out is not None
        say(video, f"  {_follow(predictor, video, out / f'{names[str(video)]}-prediction.mp4')}")
    if not results.predictions and not videos:
        raise ImageError(f"none of the {len(files)} images could be read")
    if out is not None and results.predictions:
        say(results.write())


@contextmanager
def _sizes_up_to(megapixels: int) -> Iterator[None]:
    """Pillow refuses larger images; it does so at twice its number, and warns from that on."""
    from PIL import Image as Pillow

    before, Pillow.MAX_IMAGE_PIXELS = Pillow.MAX_IMAGE_PIXELS, megapixels * 500_000
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)
            yield
    finally:
        Pillow.MAX_IMAGE_PIXELS = before


def _follow(predictor: Predictor, video: Path, target: Path) -> Path:
    """Writes a video with the predictions of each of its frames drawn on it, as many frames as it has.

    Raises:
        FocalNetError: a frame was lost.
    """
    from focalnet.inference.video import frame_rate, frames, write_video

    read = drawn = 0

    def given() -> Iterator[Image]:
        nonlocal read
        for image in frames(video):
            read += 1
            yield image

    def with_predictions() -> Iterator[Image]:
        nonlocal drawn
        for result in predictor.stream(given()):
            drawn += 1
            yield result.draw(as_frame=True)
        if drawn != read:
            raise FocalNetError(f"{video}: {read} frames were read, and {drawn} have predictions")

    return write_video(with_predictions(), target, frame_rate(video))


def _report_skipped(error: ImageError) -> None:
    say(f"skipped: {error}", err=True)
