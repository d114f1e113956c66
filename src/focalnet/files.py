"""Files that are either whole or not there: what everything in this library writes its results with."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from focalnet.errors import FocalNetError


@contextmanager
def atomic(path: str | Path, error: type[FocalNetError] = FocalNetError) -> Iterator[Path]:
    """Yields a new file beside ``path`` to write to; it takes the place of ``path`` once complete and on disk.

    Until then ``path`` is what it was before, whatever happens. Missing folders are made. What is being written
    is named ``.NAME.*.part``; only a killed process leaves one behind.

    Args:
        path: the target.
        error: what to raise when the disk or the folder does not take it.
    """
    path = Path(path)
    part = path.with_name(f".{path.name[:99]}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        permissions = part.stat().st_mode  # those of any new file here; safetensors makes its files private
        yield part
        part.chmod(permissions)
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(part, path)
    except OSError as reason:
        raise error(f"cannot write {path}: {reason.strerror or reason}; choose another place or make room") from reason
    finally:
        with suppress(OSError):  # moved in place, or never made
            part.unlink()


def write(path: str | Path, content: bytes | memoryview, error: type[FocalNetError] = FocalNetError) -> Path:
    """Writes a whole file; see ``atomic``."""
    with atomic(path, error) as part:
        part.write_bytes(content)
    return Path(path)
