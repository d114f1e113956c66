"""Finds the file of the CPU kernels and checks that it is intact.

Loading a truncated or damaged shared library may crash the process, and an older one may write to invalid addresses. So
the file is checked before it is loaded.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from focalnet.errors import InputError

_SEAL = b"focalnet kernels"  # setup.py appends it after the content and its SHA-256
_FOLDER = Path(__file__).parent
_REINSTALL = "install focalnet again"


def candidates() -> Iterator[Path]:
    """The libraries that ``pip install`` built: the one for this Python version first, then the newest.

    Raises:
        InputError: there is no library.
    """
    paths = list(_FOLDER.glob("_kernels*.so"))
    if not paths:
        raise InputError(f"the CPU kernels were not built: install a C++ compiler (g++ or clang++), then {_REINSTALL}")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    yield from sorted(paths, key=lambda path: (path.name != f"_kernels{suffix}", -path.stat().st_mtime))


def check(path: Path) -> None:
    """Raises InputError unless the file is as ``setup.py`` wrote it (on Linux; other systems check it themselves)."""
    if sys.platform != "linux":
        return
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"the CPU kernels cannot be read: {error}") from error
    content, digest, seal = content[: -len(_SEAL) - 32], content[-len(_SEAL) - 32 : -len(_SEAL)], content[-len(_SEAL) :]
    if seal != _SEAL:
        raise InputError(f"the CPU kernels in {path} are truncated, or of another version of focalnet: {_REINSTALL}")
    if hashlib.sha256(content).digest() != digest:
        raise InputError(f"the CPU kernels in {path} are damaged: {_REINSTALL}")
