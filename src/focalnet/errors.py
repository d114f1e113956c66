"""The exceptions of this library. Each message is one line that names the cause and a solution.

The command line prints the message of a ``FocalNetError`` to stderr and exits with code 2; any other
exception is a bug in the library and keeps its traceback.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import unicodedata
from collections.abc import Iterable
from types import ModuleType


class FocalNetError(Exception):
    """Base class of all errors that the library raises."""


class ConfigError(FocalNetError):
    """An option has an invalid value; the message names the option and the allowed values."""


class UnknownName(FocalNetError):
    """A model, checkpoint, recipe or option does not exist; the message suggests similar names."""


class CheckpointError(FocalNetError):
    """A weights file cannot be read, or does not fit the model; the message names the file."""


class DownloadError(FocalNetError):
    """Weights could not be downloaded; the message says which file to put where."""


class ImageError(FocalNetError):
    """A file cannot be decoded as an image; the message names the file and the reason."""


class FrozenError(FocalNetError):
    """A model frozen by ``focalnet.optimize`` would be changed; the message names the change and ``undo()``."""


class DataError(FocalNetError):
    """A data set is invalid; the message names the folder or file."""


class InputError(FocalNetError):
    """The shape or type of a tensor does not fit the model; the message states both."""


class NonFiniteOutputs(FocalNetError):
    """A network computed NaN or infinite values, which say nothing of the image; the message says what to change."""


class TrainingError(FocalNetError):
    """A training run had to stop (NaN loss, full disk, dead worker); the message says what was kept."""


class ExportError(FocalNetError):
    """A model cannot be exported, or its exported file disagrees with it; the message says why."""


class MissingDependency(FocalNetError):
    """An optional package is not installed; the message has the command that installs it."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ``'; did you mean "a" or "b"?'`` for the names most similar to ``name``, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=2, cutoff=0.6)
    return "; did you mean " + " or ".join(f'"{n}"' for n in near) + "?" if near else ""


def escaped(text: object) -> str:
    r"""Text of any origin, fit for a terminal or a log: one line, without anything that a terminal would obey.

    File names, class names and what servers say may hold escape sequences, line breaks, characters that reverse the
    order of others, and bytes that are no text. Each is shown as ``\x1b`` or ``\u202e``; all other text stays.
    """
    return "".join(c if not _commands(c) else _shown(c) for c in str(text))


def _commands(character: str) -> bool:
    """Whether a terminal would obey a character, or could not encode it."""
    category = unicodedata.category(character)
    return category in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(character) in _REORDERING


def _shown(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python reads a byte of a file name that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


_REORDERING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def require(module: str, extra: str) -> ModuleType:
    """Imports an optional package at the point of use.

    Raises:
        MissingDependency: the package is not installed; the message has the pip command for ``extra``.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise _missing(module, extra) from error


def require_installed(module: str, extra: str) -> None:
    """Like ``require``, without the import, which may be slow.

    Raises:
        MissingDependency: as ``require``.
    """
    if importlib.util.find_spec(module) is None:
        raise _missing(module, extra)


def _missing(module: str, extra: str) -> MissingDependency:
    return MissingDependency(
        f'this needs the package "{module}", which is not installed: pip install "focalnet[{extra}]"'
    )
