"""What visitors send: images within limits, in a temporary folder that is kept small."""

from __future__ import annotations

import hashlib
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from focalnet.data import images
from focalnet.errors import ImageError

MOST_BYTES = 32 << 20  # of a file
MOST_MEGAPIXELS = 50  # of an image as it is decoded: a phone's camera has up to 50
LONGEST_SIDE = 1600  # pixels of an image as it is explained: bounds the memory of masks and heat maps
LONGEST_NAME = 60  # characters shown
KEPT_SECONDS, KEPT_BYTES = 3600, 1 << 29  # of files in the temporary folder


@dataclass(frozen=True, eq=False)
class Upload:
    """An image that a visitor sent.

    Args:
        key: a hash of the file's content.
        name: of the file, shortened; for people.
        image: 8-bit RGB, upright, reduced to at most ``LONGEST_SIDE`` pixels.
        original: width and height before it was reduced.
    """

    key: str
    name: str
    image: Image.Image = field(repr=False)
    original: tuple[int, int]

    @property
    def note(self) -> str:
        """What a visitor should know of it; empty if there is nothing."""
        if self.image.size == self.original:
            return ""
        width, height = self.original
        return f"reduced from {width} x {height} to {self.image.width} x {self.image.height} pixels"


def read_upload(value: Any, folder: Path) -> Upload:
    """The image of an upload.

    Args:
        value: what the page sends of a file: a dictionary with its ``path`` on this machine and its ``orig_name``.
        folder: the only folder that it may be in.

    Raises:
        ImageError: there is no image, it is not in the folder, too large, or cannot be decoded. The message names the
            file as the visitor knows it, never its path on this machine.
    """
    path = value.get("path") if isinstance(value, dict) else None
    if not isinstance(path, str) or not path:
        raise ImageError("no image yet: drop one, or take an example")
    name = shown_name(value.get("orig_name") or path)
    file = inside(path, folder)
    if file is None:
        raise ImageError(f"{name}: is not a file that was uploaded here; uploads are kept for an hour: send it again")
    with file.open("rb") as opened:
        content = opened.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ImageError(f"{name}: is larger than {MOST_BYTES >> 20} MiB: send a smaller file")
    if _is_svg(content):
        raise ImageError(f"{name}: is a drawing (SVG), not an image of pixels: export it as PNG")
    try:
        with images.size_limit(MOST_MEGAPIXELS):
            image = images.read(content, name)
    except ImageError as error:
        if isinstance(error.__context__, Image.DecompressionBombError):
            raise ImageError(f"{name}: has more than {MOST_MEGAPIXELS} megapixels: send a smaller image") from None
        raise
    original = image.size
    if max(original) > LONGEST_SIDE:
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return Upload(hashlib.sha256(content).hexdigest(), name, image, original)


def inside(path: str, folder: Path) -> Path | None:
    """The regular file of a path with all links resolved, if it is in the folder; None otherwise."""
    try:
        file = Path(path).resolve(strict=True)
        return file if file.is_file() and file.is_relative_to(folder.resolve()) else None
    except (OSError, ValueError, RuntimeError):  # too long, a null character, links in a circle
        return None


def shown_name(name: Any) -> str:
    """The last part of a file's name, without control characters, in at most ``LONGEST_NAME`` characters."""
    last = str(name).replace("\\", "/").rpartition("/")[2]
    last = "".join(character if character.isprintable() else "?" for character in last) or "image"
    return last if len(last) <= LONGEST_NAME else f"{last[: LONGEST_NAME - 12]}…{last[-11:]}"


class Sweeper:
    """Deletes old files of a folder, and the oldest ones if all together are too large.

    Args:
        folder: to keep small.
        seconds: age at which files are deleted.
        most_bytes: of all files together.
    """

    def __init__(self, folder: Path, seconds: float = KEPT_SECONDS, most_bytes: int = KEPT_BYTES) -> None:
        self.folder, self.seconds, self.most_bytes = folder, seconds, most_bytes
        self._kept: set[Path] = set()
        self._lock = threading.Lock()

    def keep(self) -> None:
        """Never deletes the files that are there now: the examples."""
        self._kept = set(self._files())

    def sweep(self) -> None:
        """Deletes what is to be deleted now; whoever comes while that happens goes on without waiting."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            found = []
            for file in self._files():
                try:
                    status = file.stat()
                except OSError:  # deleted meanwhile
                    continue
                found.append((status.st_mtime, status.st_size, file))
            now, total = time.time(), 0
            for changed, size, file in sorted(found, reverse=True):  # newest first
                total += size
                if file not in self._kept and (now - changed > self.seconds or total > self.most_bytes):
                    self._delete(file)
        finally:
            self._lock.release()

    def _files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]

    def _delete(self, file: Path) -> None:
        file.unlink(missing_ok=True)
        with suppress(OSError):  # other files are in its folder
            if file.parent != self.folder:
                file.parent.rmdir()


def _is_svg(content: bytes) -> bool:
    """Whether a file is an SVG drawing, as far as its first bytes say; it would be refused as no image anyway."""
    start = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<svg", b"<?xml", b"<!doctype svg")) and b"<svg" in content[:4096].lower()
