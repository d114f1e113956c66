"""Films, frame by frame, through OpenCV where it is installed."""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from focalnet.errors import FocalNetError, ImageError, require

logger = logging.getLogger(__name__)

SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".webm")


def is_video(path: str | Path) -> bool:
    """Whether the file's name is that of a film."""
    return Path(path).suffix.lower() in SUFFIXES


def frames(path: str | Path) -> Iterator[Image.Image]:
    """Yields the frames of a video, one after another; a warning says if there are fewer than the file says it has.

    Raises:
        ImageError: it cannot be read.
        MissingDependency: OpenCV is not installed.
    """
    cv2 = require("cv2", "video")
    film = cv2.VideoCapture(str(path))
    try:
        there, frame_BGR = film.read()
        if not there:
            raise ImageError(f"{path}: cannot be read as a film")
        count = 0
        while there:
            yield Image.fromarray(cv2.cvtColor(frame_BGR, cv2.COLOR_BGR2RGB))
            count += 1
            there, frame_BGR = film.read()
        declared = film.get(cv2.CAP_PROP_FRAME_COUNT)
        if math.isfinite(declared) and count < declared:
            logger.warning(
                "%s: only %d frames could be read, of %d that the file says it has: it may be damaged",
                path,
                count,
                round(declared),
            )
    finally:
        film.release()


def frame_rate(path: str | Path) -> float:
    """Frames a second, 25 where the film does not say."""
    cv2 = require("cv2", "video")
    film = cv2.VideoCapture(str(path))
    try:
        rate = float(film.get(cv2.CAP_PROP_FPS))
        return rate if math.isfinite(rate) and rate > 0 else 25.0
    finally:
        film.release()


def write_video(pictures: Iterable[Image.Image], path: Path, rate: float) -> Path:
    """Writes images of one size as an MP4 video of that size and as many frames; it is there when whole.

    Raises:
        FocalNetError: it cannot be written, images differ in size, or a frame is missing from what was written.
        MissingDependency: OpenCV is not installed.
    """
    cv2 = require("cv2", "video")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        part, count, size = Path(folder, f"film{path.suffix}"), 0, (0, 0)
        film: Any = None
        try:
            for picture in pictures:
                if film is None:
                    size = picture.size
                    film, encoded = _writer(part, rate, size)
                    if not film.isOpened():
                        raise FocalNetError(
                            f"cannot write {path}: OpenCV makes no {path.suffix} of {_pixels(size)} pixels with "
                            f"{rate:g} frames a second"
                        )
                if picture.size != size:  # OpenCV would leave it out without a word
                    raise FocalNetError(
                        f"cannot write {path}: frame {count + 1} has {_pixels(picture.size)} pixels, those before "
                        f"{_pixels(size)}; all frames of a video must have one size"
                    )
                film.write(encoded(cv2.cvtColor(np.asarray(picture.convert("RGB")), cv2.COLOR_RGB2BGR)))
                count += 1
        finally:
            if film is not None:
                film.release()
        if not part.is_file():
            raise FocalNetError(f"cannot write {path}: OpenCV made no film of it")
        written, found = _frames_and_size(part, count)
        if (written, found) != (count, size):
            raise FocalNetError(
                f"cannot write {path}: of {count} frames of {_pixels(size)} pixels, OpenCV wrote {written} of "
                f"{_pixels(found)}; is the disk full?"
            )
        os.replace(part, path)
    return path


def _writer(part: Path, rate: float, size: tuple[int, int]) -> tuple[Any, Callable[[Any], Any]]:
    """OpenCV's writer, and what it takes for a frame in BGR.

    Of odd sides, its encoders cut off a row or column. JPEG does not: such frames are encoded first, and only stored.
    """
    cv2 = require("cv2", "video")
    if not any(side % 2 for side in size):
        return cv2.VideoWriter(str(part), cv2.VideoWriter_fourcc(*"mp4v"), rate, size), lambda frame_BGR: frame_BGR
    options = [cv2.VIDEOWRITER_PROP_RAW_VIDEO, 1]
    film = cv2.VideoWriter(str(part), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), rate, size, options)
    return film, lambda frame_BGR: cv2.imencode(".jpg", frame_BGR)[1]


def _frames_and_size(path: Path, expected: int) -> tuple[int, tuple[int, int]]:
    """How many frames a video has, and their width and height."""
    cv2 = require("cv2", "video")
    film = cv2.VideoCapture(str(path))
    try:
        size = round(film.get(cv2.CAP_PROP_FRAME_WIDTH)), round(film.get(cv2.CAP_PROP_FRAME_HEIGHT))
        count = round(film.get(cv2.CAP_PROP_FRAME_COUNT))
        if count != expected:  # some containers only tell how long they last
            count = 0
            while film.grab():
                count += 1
        return count, size
    finally:
        film.release()


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
