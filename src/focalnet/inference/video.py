"""Films, frame by frame, through OpenCV where it is installed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from focalnet.errors import FocalNetError, ImageError, require

SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".webm")


def is_video(path: str | Path) -> bool:
    """Whether the file's name is that of a film."""
    return Path(path).suffix.lower() in SUFFIXES


def frames(path: str | Path) -> Iterator[Image.Image]:
    """Yields the frames of a film, one after another.

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
        while there:
            yield Image.fromarray(cv2.cvtColor(frame_BGR, cv2.COLOR_BGR2RGB))
            there, frame_BGR = film.read()
    finally:
        film.release()


def frame_rate(path: str | Path) -> float:
    """Frames a second, 25 where the film does not say."""
    cv2 = require("cv2", "video")
    film = cv2.VideoCapture(str(path))
    try:
        return float(film.get(cv2.CAP_PROP_FPS)) or 25.0
    finally:
        film.release()


def write_video(pictures: Iterable[Image.Image], path: Path, rate: float) -> Path:
    """Writes pictures of one size as an MP4 film; it is there when whole.

    Raises:
        FocalNetError: it cannot be written.
        MissingDependency: OpenCV is not installed.
    """
    cv2 = require("cv2", "video")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        part, film = Path(folder, f"film{path.suffix}"), None
        for picture in pictures:
            if film is None:
                film = cv2.VideoWriter(str(part), cv2.VideoWriter_fourcc(*"mp4v"), rate, picture.size)
            film.write(cv2.cvtColor(np.asarray(picture.convert("RGB")), cv2.COLOR_RGB2BGR))
        if film is not None:
            film.release()
        if not part.is_file():
            raise FocalNetError(f"cannot write {path}: OpenCV made no film of it")
        os.replace(part, path)
    return path
