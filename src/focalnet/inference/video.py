"""Videos, frame by frame, by OpenCV where it is installed."""

from __future__ import annotations

import logging
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from focalnet.errors import FocalNetError, ImageError, require

logger = logging.getLogger(__name__)

SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".webm")

MOST_LATE = 0.5  # seconds between the time of a frame and that at an even rate which need no warning


def is_video(path: str | Path) -> bool:
    """Whether the file has the suffix of a video."""
    return Path(path).suffix.lower() in SUFFIXES


def frames(path: str | Path) -> Iterator[Image.Image]:
    """Yields the frames of a video, one after another; warns of fewer than the file declares, or of an uneven rate.

    Raises:
        ImageError: it cannot be read.
        MissingDependency: OpenCV is not installed.
    """
    cv2 = require("cv2", "video")
    video = cv2.VideoCapture(_in_utf8(path))
    try:
        was_read, frame_BGR = video.read()
        if not was_read:
            raise ImageError(f"{path}: cannot be read as a video")
        count, late = 0, 0.0
        rate, first = _declared_rate(video), float(video.get(cv2.CAP_PROP_POS_MSEC)) / 1000
        while was_read:
            moment = float(video.get(cv2.CAP_PROP_POS_MSEC)) / 1000  # 0 or less where it is unknown
            if moment > first:
                late = max(late, abs(moment - first - count / rate))
            yield Image.fromarray(cv2.cvtColor(frame_BGR, cv2.COLOR_BGR2RGB))
            count += 1
            was_read, frame_BGR = video.read()
        declared = video.get(cv2.CAP_PROP_FRAME_COUNT)
        if math.isfinite(declared) and count < declared:
            logger.warning(
                "%s: only %d frames could be read, of %d that the file declares: it may be damaged",
                path,
                count,
                round(declared),
            )
        if late > MOST_LATE:
            logger.warning(
                "%s: has a variable frame rate: its frames are up to %.1f s before or after their times at an even %g "
                "a second, which results have",
                path,
                late,
                rate,
            )
    finally:
        video.release()


def open_stream(source: str) -> tuple[float, Iterator[Image.Image]]:
    """Opens a camera or a stream.

    Args:
        source: the number of a camera from 0, or an address (``rtsp://...``).

    Returns:
        Frames a second, 25 if it does not declare them, and the frames until it ends.

    Raises:
        ImageError: it cannot be opened.
        MissingDependency: OpenCV is not installed.
    """
    cv2 = require("cv2", "video")
    video = cv2.VideoCapture(int(source) if source.isdecimal() else _in_utf8(source))
    if not video.isOpened():
        video.release()
        raise ImageError(f"{source}: cannot be opened as a camera or stream; cameras are numbered from 0")

    def read() -> Iterator[Image.Image]:
        try:
            while (found := video.read())[0]:
                yield Image.fromarray(cv2.cvtColor(found[1], cv2.COLOR_BGR2RGB))
        finally:
            video.release()

    return _declared_rate(video), read()


def frame_rate(path: str | Path) -> float:
    """Frames a second, 25 if the video does not declare it."""
    cv2 = require("cv2", "video")
    video = cv2.VideoCapture(_in_utf8(path))
    try:
        return _declared_rate(video)
    finally:
        video.release()


def _declared_rate(video: Any) -> float:
    rate = float(video.get(require("cv2", "video").CAP_PROP_FPS))
    return rate if math.isfinite(rate) and rate > 0 else 25.0


def write_video(images: Iterable[Image.Image], path: Path, rate: float, *, sound_of: str | Path | None = None) -> Path:
    """Writes images of one size as an MP4 video of that size and as many frames; the file appears when it is complete.

    Args:
        images: the frames.
        path: the target.
        rate: frames a second.
        sound_of: a video whose sound is copied, if it has any and ffmpeg is installed.

    Raises:
        FocalNetError: it cannot be written, images differ in size, or a frame is missing from what was written.
        MissingDependency: OpenCV is not installed.
    """
    try:
        return _written(images, path, rate, sound_of)
    except OSError as error:
        raise FocalNetError(f"cannot write {path}: {error.strerror}; choose another place or make room") from error


def _written(images: Iterable[Image.Image], path: Path, rate: float, sound_of: str | Path | None) -> Path:
    cv2 = require("cv2", "video")
    _in_utf8(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        part, count, size = Path(folder, f"video{path.suffix}"), 0, (0, 0)
        video: Any = None
        try:
            for image in images:
                if video is None:
                    size = image.size
                    video, encoded = _writer(part, rate, size)
                    if not video.isOpened():
                        raise FocalNetError(
                            f"cannot write {path}: OpenCV makes no {path.suffix} of {_pixels(size)} pixels with "
                            f"{rate:g} frames a second"
                        )
                if image.size != size:  # OpenCV would silently leave it out
                    raise FocalNetError(
                        f"cannot write {path}: frame {count + 1} has {_pixels(image.size)} pixels, those before "
                        f"{_pixels(size)}; all frames of a video must have one size"
                    )
                video.write(encoded(cv2.cvtColor(np.asarray(image.convert("RGB")), cv2.COLOR_RGB2BGR)))
                count += 1
        finally:
            if video is not None:
                video.release()
        if not part.is_file():
            raise FocalNetError(f"cannot write {path}: OpenCV wrote no video")
        written, written_size = _frames_and_size(part, count)
        if (written, written_size) != (count, size):
            raise FocalNetError(
                f"cannot write {path}: of {count} frames of {_pixels(size)} pixels, OpenCV wrote {written} of "
                f"{_pixels(written_size)}; is the disk full?"
            )
        os.replace(_with_sound(part, sound_of, count) if sound_of is not None else part, path)
    return path


def _with_sound(silent: Path, source: str | Path, count: int) -> Path:
    """A copy of a video with the sound of another one, or the video itself where ffmpeg is missing or fails.

    The frames are copied as they are; sound that MP4 cannot hold is encoded anew.
    """
    if (ffmpeg := shutil.which("ffmpeg")) is None:
        return silent
    target = silent.with_name(f"sound{silent.suffix}")
    for codec in ("copy", "aac"):
        # With "file:", so that no name is taken for an option or another protocol.
        inputs = [part for file in (silent, source) for part in ("-i", f"file:{os.path.abspath(file)}")]
        maps = ["-map", "0:v:0", "-map", "1:a?", "-c:v", "copy", "-c:a", codec]
        command = [ffmpeg, "-nostdin", "-v", "error", "-y", *inputs, *maps, f"file:{target}"]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode == 0 and target.is_file() and _frames_and_size(target, count)[0] == count:
            return target
    reason = " ".join(done.stderr.decode(errors="replace").split())
    logger.warning("%s: its sound could not be copied: %s", source, reason)
    return silent


def _writer(part: Path, rate: float, size: tuple[int, int]) -> tuple[Any, Callable[[Any], Any]]:
    """OpenCV's writer, and a function that makes what it takes of a frame in BGR.

    Its encoders cut off a row or column of odd sides. JPEG does not: such frames are encoded first, and only stored.
    """
    cv2 = require("cv2", "video")
    if not any(side % 2 for side in size):
        return cv2.VideoWriter(str(part), cv2.VideoWriter_fourcc(*"mp4v"), rate, size), lambda frame_BGR: frame_BGR
    options = [cv2.VIDEOWRITER_PROP_RAW_VIDEO, 1]
    video = cv2.VideoWriter(str(part), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJPG"), rate, size, options)
    return video, lambda frame_BGR: cv2.imencode(".jpg", frame_BGR)[1]


def _frames_and_size(path: Path, expected: int) -> tuple[int, tuple[int, int]]:
    """How many frames a video has, and their width and height."""
    cv2 = require("cv2", "video")
    video = cv2.VideoCapture(_in_utf8(path))
    try:
        size = round(video.get(cv2.CAP_PROP_FRAME_WIDTH)), round(video.get(cv2.CAP_PROP_FRAME_HEIGHT))
        count = round(video.get(cv2.CAP_PROP_FRAME_COUNT))
        if count != expected:  # some containers declare only their duration
            count = 0
            while video.grab():
                count += 1
        return count, size
    finally:
        video.release()


def _in_utf8(path: str | Path) -> str:
    """A path that OpenCV takes: others make it crash.

    Raises:
        ImageError: there are bytes in it that are not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ImageError(f"{path}: OpenCV takes no path that is not UTF-8: rename it") from error
    return str(path)


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
