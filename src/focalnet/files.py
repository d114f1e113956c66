"""Atomic file writes, used for all files that the library writes."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from focalnet.errors import FocalNetError

#: What a file system without locks answers.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def atomic(path: str | Path, error: type[FocalNetError] = FocalNetError) -> Iterator[Path]:
    """Yields a temporary file next to ``path`` to write to, which replaces ``path`` once it is complete and on disk.

    Until then, ``path`` is unchanged. Missing folders are created. The temporary file is named ``.NAME.*.part``; only a
    killed process leaves it behind.

    Args:
        path: the target.
        error: exception class to raise if the file cannot be written.
    """
    path = Path(path)
    part = path.with_name(f".{cut(path.name, 99)}.{uuid.uuid4().hex}.part")
    try:
        _refuse_folder(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        permissions = part.stat().st_mode  # those of a new file; safetensors makes its files private
        yield part
        part.chmod(permissions)
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(part, path)
    except OSError as reason:
        raise error(
            f"cannot write {path}: {reason.strerror or reason}; choose another path or free some space"
        ) from reason
    finally:
        with suppress(OSError):  # moved into place, or never created
            part.unlink()


@contextmanager
def atomic_together(paths: Sequence[Path], error: type[FocalNetError] = FocalNetError) -> Iterator[list[Path]]:
    """Like ``atomic`` for files of one folder that belong together: all of them are replaced, or none.

    Yields the paths to write to, which have the same names in a hidden folder.

    Args:
        paths: the targets.
        error: exception class to raise if a file cannot be written.
    """
    folder = paths[0].with_name(f".{cut(paths[0].name, 99)}.{uuid.uuid4().hex}.part")
    before = folder / "before"
    moved: list[tuple[Path, Path]] = []  # from where to where
    try:
        for path in paths:
            _refuse_folder(path)
        before.mkdir(parents=True)
        parts = [folder / path.name for path in paths]
        yield parts
        for part in parts:
            with part.open("rb+") as written:
                os.fsync(written.fileno())
        for part, path in zip(parts, paths, strict=True):
            for source, target in ((path, before / path.name), (part, path)):
                if source.exists():
                    os.replace(source, target)
                    moved.append((source, target))
        moved.clear()
    except OSError as reason:
        raise error(
            f"cannot write {paths[0]}: {reason.strerror or reason}; choose another path or free some space"
        ) from reason
    finally:
        for source, target in reversed(moved):  # not all of them could be moved
            os.replace(target, source)
        shutil.rmtree(folder, ignore_errors=True)


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


def cut(name: str, size: int) -> str:
    """The beginning of a name, of at most so many bytes in UTF-8: file systems take 255 in all."""
    return name.encode(errors="surrogateescape")[:size].decode(errors="ignore")


def write(path: str | Path, content: bytes | memoryview, error: type[FocalNetError] = FocalNetError) -> Path:
    """Writes a file atomically; see ``atomic``."""
    with atomic(path, error) as part:
        part.write_bytes(content)
    return Path(path)
