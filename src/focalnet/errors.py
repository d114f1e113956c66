"""Every error this library raises on purpose: one line that names the thing and the way out.

The command line turns any ``FocalNetError`` into that line on stderr and exit code 2; every other
exception is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import importlib
import unicodedata
from collections.abc import Iterable
from types import ModuleType


class FocalNetError(Exception):
    """Base class of all errors raised on purpose."""


class ConfigError(FocalNetError):
    """An option has a value that cannot work; the message names the option and the allowed values."""


class UnknownName(FocalNetError):
    """A model, checkpoint, recipe or option that does not exist; the message names the nearest ones."""


class CheckpointError(FocalNetError):
    """A weights file that cannot be read, or does not belong to the model; the message names the file."""


class DownloadError(FocalNetError):
    """Weights could not be fetched; the message says which file to put where by hand."""


class ImageError(FocalNetError):
    """A file that cannot be decoded as an image; the message names the file and what is wrong with it."""


class FrozenError(FocalNetError):
    """A model that ``focalnet.optimize`` has frozen was to be changed; the message says how, and names undo()."""


class DataError(FocalNetError):
    """A data set that cannot be used as it is; the message names the folder or file."""


class InputError(FocalNetError):
    """A tensor whose shape or type does not fit the model; the message states both."""


class TrainingError(FocalNetError):
    """A run that had to stop (NaN loss, full disk, dead worker); the message says what was kept."""


class MissingDependency(FocalNetError):
    """An optional package is not installed; the message is the command that installs it."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ``'; did you mean "a" or "b"?'`` for the names nearest to ``name``, or an empty string."""
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
        MissingDependency: the package is absent; the message is the pip command for ``extra``.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingDependency(
            f'this needs the package "{module}", which is not installed: pip install "focalnet[{extra}]"'
        ) from error
