"""Where text of the command line reaches a terminal: names and messages of any origin do not command it."""

from __future__ import annotations

import errno
import logging
import sys
from contextlib import AbstractContextManager, nullcontext

import typer

from focalnet.errors import FocalNetError, escaped


def say(*lines: object, err: bool = False) -> None:
    r"""Prints each argument as one line, on stderr if ``err``, with what a terminal would obey shown as ``\x1b``.

    Raises:
        FocalNetError: the standard output is a file on a full disk.
    """
    try:
        with _above_bars():
            typer.echo("\n".join(map(escaped, lines)), err=err)
    except OSError as error:
        if error.errno != errno.ENOSPC or err:
            raise
        raise FocalNetError("cannot write to the standard output: the disk is full; free some space") from error


def _above_bars() -> AbstractContextManager[object]:
    """Lines appear above progress bars, if any are shown; without any, tqdm is not imported."""
    if "tqdm.std" not in sys.modules:
        return nullcontext()
    bars: AbstractContextManager[object] = sys.modules["tqdm.std"].tqdm.external_write_mode()
    return bars


class ToStderr(logging.Handler):
    """Prints what the library logs, each message as one line."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record), err=True)
