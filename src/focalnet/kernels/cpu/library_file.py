"""The file of the CPU kernels: where it is, and whether it is whole.

Loading a shared library that is cut off or damaged may end the process, and one that is older may write where it should
not. So a file is looked at before it is loaded.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from focalnet.errors import InputError

_SEAL = b"focalnet kernels"  # setup.py writes it, after the content and its SHA-256
_FOLDER = Path(__file__).parent
_AGAIN = "install focalnet again"


def candidates() -> Iterator[Path]:
    """The libraries that ``pip install`` built: the one for this Python first, then the newest.

    Raises:
        InputError: there is none.
    """
    found = list(_FOLDER.glob("_kernels*.so"))
    if not found:
        raise InputError(f"the CPU kernels were not built: get a C++ compiler (g++ or clang++) and {_AGAIN}")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    yield from sorted(found, key=lambda path: (path.name != f"_kernels{suffix}", -path.stat().st_mtime))


def check(path: Path) -> None:
    """Raises InputError unless the file is as ``setup.py`` wrote it (on Linux; elsewhere the system looks itself)."""
    if sys.platform != "linux":
        return
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"the CPU kernels cannot be read: {error}") from error
    content, digest, seal = content[: -len(_SEAL) - 32], content[-len(_SEAL) - 32 : -len(_SEAL)], content[-len(_SEAL) :]
    if seal != _SEAL:
        raise InputError(f"the CPU kernels in {path} are cut off, or of another version of focalnet: {_AGAIN}")
    if hashlib.sha256(content).digest() != digest:
        raise InputError(f"the CPU kernels in {path} are damaged: {_AGAIN}")
