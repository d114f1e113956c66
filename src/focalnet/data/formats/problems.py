"""What is wrong with a data set, entry by entry, and whether that stops training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from focalnet.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a data set: the file, the entry of it, and what.

    ``str()`` is one line. ``fatal`` entries are of no use; of the others (a box over the edge) the usable part is kept.
    """

    file: str
    entry: str
    what: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.file}: {self.entry}: {self.what}" if self.entry else f"{self.file}: {self.what}"


def list_problems(problems: Sequence[Problem], most: int = 3) -> Iterator[str]:
    """The first few as text."""
    yield from map(str, problems[:most])
    if len(problems) > most:
        yield f"and {len(problems) - most} more"


class Checked(Protocol):
    """Any split of a data set in which problems were looked for."""

    @property
    def problems(self) -> list[Problem]: ...


def decide(checked: Checked, on_error: Literal["raise", "skip"]) -> None:
    """Stops at a data set with problems, or warns that what is wrong with it is left out.

    Raises:
        DataError: there are problems and they are not to be skipped.
    """
    if not checked.problems:
        return
    found = "; ".join(list_problems(checked.problems))
    if on_error == "raise":
        raise DataError(f"{found}. focalnet check-data lists all; data.on_error skip leaves such entries out")
    logger.warning("left out what is wrong with the annotations: %s", found)
