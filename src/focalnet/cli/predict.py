"""``focalnet predict``: predicts classes, objects or segments in images and videos."""

from __future__ import annotations

import glob
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from focalnet.cli import DEFAULT_MODEL
from focalnet.cli.results import FrameList, Ids, Results, frame_list, refuse_to_overwrite
from focalnet.cli.terminal import say
from focalnet.errors import ConfigError, DataError, FocalNetError, ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from focalnet.inference import Predictor
    from focalnet.results import Result


class OnError(str, Enum):
    """What to do with an image that cannot be read, or whose result cannot be written."""

    RAISE = "raise"
    SKIP = "skip"


class ShardFormat(str, Enum):
    """Formats of the output for manifests."""

    PARQUET = "parquet"
    JSONL = "jsonl"


def predict(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILES|FOLDERS|GLOBS...",
            help="Images; a detector or segmenter also takes videos. Or manifests: .txt, .parquet, .tar.",
        ),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="A name in 'focalnet models', a weights file, or an exported file.")
    ] = DEFAULT_MODEL,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Output folder: images with the result drawn on them, predictions.json, and depending on the model "
            "detections.json (objects), NAME.labels.png (semantic), or NAME.panoptic.png and panoptic.json (panoptic)."
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of classes to show per image, best first.")] = 5,
    min_score: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Lowest score of an object (default: 0.3; 0 for evaluation), or of a multi-label classifier's class "
            "(default: 0.5).",
        ),
    ] = None,
    tile: Annotated[
        int | None, typer.Option(min=32, help="Predict in square tiles with this side in pixels, for large images.")
    ] = None,
    overlap: Annotated[float, typer.Option(help="Fraction of a tile that its neighbor also covers.")] = 0.25,
    flip: Annotated[bool, typer.Option("--flip", help="Also predict the mirrored image and merge both.")] = False,
    short_side: Annotated[
        list[int] | None,
        typer.Option(help="Short side of the image in pixels; repeat it to merge several sizes."),
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(
            help="COCO annotation file whose image and category ids detections.json or panoptic.json should use."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; default: a GPU if there is one.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per batch.")] = None,
    table: Annotated[
        Path | None, typer.Option(help="Write all results to this table: .csv or .parquet; those of a video by frame.")
    ] = None,
    stream: Annotated[
        str | None,
        typer.Option(
            help="Predict the frames of a camera (0, 1, ...) or stream (rtsp://...) until it ends, or Ctrl-C; with "
            "--out also write them."
        ),
    ] = None,
    max_megapixels: Annotated[
        int, typer.Option(min=1, help="Refuse larger images: a small corrupt file may claim any size.")
    ] = 200,
    on_error: Annotated[
        OnError | None,
        typer.Option(
            help="What to do with an unreadable image, or a result that cannot be written: stop, or skip it; default: "
            "stop, but give a row of a manifest the error."
        ),
    ] = None,
    rows_per_shard: Annotated[
        int | None,
        typer.Option(
            min=1, help="For manifests (.txt, .parquet, .tar) and large folders: images per output file; default 10000."
        ),
    ] = None,
    shard_format: Annotated[
        ShardFormat | None, typer.Option(help="For manifests: format of the output files; default: parquet.")
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(help="For manifests in Parquet: the column with paths or images; default: path, or the only one."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="For manifests: processes, each with its own copy of the model."),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="For manifests: predict only the I-th of N shares, 1/N to N/N; default: that of torchrun, or all.",
        ),
    ] = None,
) -> None:
    """Predicts what images show.

    A classifier gives classes and scores, a detector objects, a segmenter the class or segment of each pixel. For
    millions of images, give a manifest: a .txt file with a path per line, a .parquet file, or WebDataset's .tar files;
    results are written in shards, and the same command resumes after any interruption.
    """
    from focalnet.data.images import find, size_limit
    from focalnet.inference.manifest.sources import is_manifest
    from focalnet.results.tables import check_table

    manifests = [path for path in paths or () if is_manifest(path)]
    if manifests or rows_per_shard is not None:
        not_for_manifests = {"--stream": stream, "--table": table, "--annotations": annotations}
        if given := [name for name, value in not_for_manifests.items() if value is not None]:
            raise ConfigError(f"{given[0]} is not for manifests, whose results are in the shards of --out")
        if out is None:
            raise ConfigError("a manifest needs --out, the folder of its results")
        if not paths:
            raise ConfigError("--rows-per-shard is for a manifest or folder, and none is given")
        options = {"tile": tile, "flip": flip, "short_sides": tuple(short_side or ())}
        _predict_manifest(
            paths,
            out,
            model,
            rows_per_shard=rows_per_shard,
            shard_format=None if shard_format is None else shard_format.value,
            column=column,
            share=None if shard is None else _share(shard),
            workers=workers,
            device=device,
            batch_size=batch_size,
            top_k=top,
            min_score=min_score,
            views={**options, "overlap": overlap} if any(options.values()) else None,
            max_megapixels=max_megapixels,
            on_error=None if on_error is None else on_error.value,
        )
        return
    only_for_manifests = {"--shard-format": shard_format, "--column": column, "--workers": workers, "--shard": shard}
    if given := [name for name, value in only_for_manifests.items() if value is not None]:
        raise ConfigError(
            f"{given[0]} is for manifests (.txt, .parquet, .tar); for images of a folder add --rows-per-shard"
        )
    if table is not None:
        check_table(table)
    if (stream is None) == (not paths):
        raise ConfigError(
            "predict takes FILES|FOLDERS|GLOBS, or a camera or stream by --stream, and not both; see "
            '"focalnet predict --help"'
        )
    if stream is not None and (table is not None or annotations is not None):
        raise ConfigError("--table and --annotations are for images, not for the frames of a stream")
    try:
        files = find(paths) if paths else []  # before importing torch, so that a mistyped path fails at once
    except DataError as error:
        if videos := _videos_passed_over(paths or ()):
            raise DataError(f"{error}; {_few(videos)}: a video is named itself, not by its folder") from error
        raise

    from focalnet.inference import Predictor, Views
    from focalnet.inference.exported import load_network
    from focalnet.inference.video import is_video
    from focalnet.visualize import unique_names

    network = load_network(model)
    views = Views(tile=tile, overlap=overlap, flip=flip, short_sides=tuple(short_side or ()))
    predictor = Predictor(network, device, batch_size=batch_size, top_k=top, min_score=min_score, views=views)
    if stream is not None:
        _predict_stream(predictor, stream, out, {"model": model, "stream": stream})
        return
    videos = [file for file in files if is_video(file)]
    classifies = network.config.classifies
    of_objects = {"--annotations": annotations, "--tile": tile, "--flip": flip, "--short-side": short_side}
    if classifies and (ignored := [name for name, value in of_objects.items() if value]):
        say(f"warning: {', '.join(ignored)}: for detectors and segmenters, without effect on a classifier", err=True)
    if videos and (out is None or classifies):
        raise ConfigError(
            f"{videos[0]}: a video needs a detector or segmenter, and --out for the video with the result"
        )
    images = [file for file in files if file not in videos]
    results = Results(out, model, None if classifies else Ids(network, annotations, images), table)
    names = dict(zip(map(str, files), unique_names(files, below=paths or ()), strict=True))
    skip = _report_skipped if on_error is OnError.SKIP else None
    if passed_over := _videos_passed_over(paths or ()):
        say(f"warning: {_few(passed_over)}: videos in folders are passed over; name them to predict them", err=True)
    if out is not None:
        refuse_to_overwrite(files, names.values(), out)
    with size_limit(max_megapixels), results.kept():
        for result in predictor.stream(images, skip=skip):
            with _skipping(skip):
                results.add(result, names[str(result.path)])
                say(result.path, *(f"  {line}" for line in result.summary()))
        if out is not None and results.count:
            say(results.write())
    followed = 0
    for video in videos:
        assert out is not None
        with _skipping(skip):
            say(video, f"  {_predict_video(predictor, video, out, names[str(video)], results)}")
            followed += 1
    if table is not None and (results.count or followed):
        say(results.write_table())
    if not results.count and not followed:
        raise ImageError(f"none of the {len(files)} images could be read")


def _videos_passed_over(paths: Iterable[str]) -> list[Path]:
    """The videos in folders, which are searched for images only."""
    from focalnet.data.images import list_folder
    from focalnet.inference.video import SUFFIXES

    return [video for path in map(Path, paths) if path.is_dir() for video in list_folder(path, SUFFIXES)]


def _few(files: Sequence[Path]) -> str:
    """The first file, and how many follow."""
    return f"{files[0]}" if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"


def _predict_manifest(
    paths: list[str], out: Path, model: str, *, views: Mapping[str, Any] | None, **options: Any
) -> None:
    """Predicts a manifest with the options that are given, and says how far it is."""
    from focalnet.inference.manifest.running import predict_manifest

    options = {name: value for name, value in options.items() if value is not None}
    if views is not None:
        from focalnet.inference import Views

        options["views"] = Views(**views)
    files = [file for path in paths for file in _matches(path)]
    totals = predict_manifest(files, out, model, report=say, **options)
    say(f"{totals.shards} shards with {totals.rows} rows are finished in {out}")
    if totals.errors:
        say(f'{totals.errors} rows have no result: their column "error" says why', err=True)


def _matches(path: str) -> list[str]:
    """The files that a pattern matches; a path is itself."""
    if Path(path).exists() or not glob.has_magic(path):
        return [path]
    if not (files := sorted(glob.glob(path, recursive=True))):
        raise DataError(f"{path}: matches nothing")
    return files


def _share(value: str) -> tuple[int, int]:
    if (match := re.fullmatch(r"(\d+)/(\d+)", value)) is None:
        raise ConfigError(f"--shard {value} must be I/N, for example 1/4")
    return int(match[1]), int(match[2])


@contextmanager
def _skipping(skip: Callable[[FocalNetError], None] | None) -> Iterator[None]:
    """Within, an error is only reported where that was wished."""
    try:
        yield
    except FocalNetError as error:
        if skip is None:
            raise
        skip(error)


def _predict_video(predictor: Predictor, video: Path, folder: Path, name: str, results: Results) -> str:
    """Writes a video with the predictions drawn on its frames, as many as it has, and a JSON file of all frames.

    The table of ``results`` gets the rows of all frames, once the video is complete.

    Returns:
        What was written.

    Raises:
        FocalNetError: a frame has no prediction, or something cannot be written.
    """
    from focalnet.inference.video import frame_rate, frames, write_video

    rate = frame_rate(video)
    read = 0

    def counted_frames() -> Iterator[Image]:
        nonlocal read
        for image in frames(video):
            read += 1
            yield image

    def with_predictions(lists: FrameList) -> Iterator[Image]:
        for result in predictor.stream(counted_frames()):
            lists.add(result)
            yield result.draw(as_frame=True)
        if lists.count != read:
            raise FocalNetError(f"{video}: {read} frames were read, and {lists.count} have predictions")

    target, listed = folder / f"{name}-prediction.mp4", folder / f"{name}-prediction.json"
    with frame_list(listed, {**results.header, "video": str(video), "frame_rate": rate}) as lists:
        lists.keep_rows = results.table is not None
        write_video(with_predictions(lists), target, rate, sound_of=video)
    results.add_rows(str(video), lists.rows)
    return f"{target} and {listed}"


def _predict_stream(predictor: Predictor, stream: str, out: Path | None, header: Mapping[str, Any]) -> None:
    """Prints the predictions of each frame of a camera or stream until it ends or Ctrl-C.

    With an output folder, it also writes ``stream-prediction.mp4`` and ``stream-prediction.json``.
    """
    from focalnet.inference.video import open_stream, write_video

    rate, images = open_stream(stream)
    predictor.batch_size = 1  # each frame as soon as it is there
    with _interrupts() as stopped:

        def predictions() -> Iterator[Result]:
            for number, result in enumerate(predictor.stream(images)):
                say(f"frame {number}", *(f"  {line}" for line in result.summary()))
                yield result
                if stopped():
                    break

        if out is None:
            for _ in predictions():
                pass
            return
        listed = out / "stream-prediction.json"
        with frame_list(listed, {**header, "frame_rate": rate}) as lists:

            def drawn() -> Iterator[Image]:
                for result in predictions():
                    lists.add(result)
                    yield result.draw(as_frame=True)

            target = write_video(drawn(), out / "stream-prediction.mp4", rate)
    say(f"wrote {lists.count} frames to {target} and {listed}")


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Within, the first Ctrl-C only has the function that is given return true; the second one interrupts as usual."""
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield lambda: False
        return
    came = False

    def stop(*_: object) -> None:
        nonlocal came
        came = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before)


def _report_skipped(error: FocalNetError) -> None:
    say(f"skipped: {error}", err=True)
