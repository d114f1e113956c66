"""What is wrong with a data set, entry by entry, and whether that stops training."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from focalnet.errors import DataError

logger = logging.getLogger(__name__)


#: Takes the entry of a file and what is wrong with it, and the other fields of ``Problem``.
Report: TypeAlias = Callable[..., None]

LONGEST = 400  # characters of what a message lists


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a data set: the file, the entry of it, and what.

    ``str()`` is one line. ``fatal`` entries are of no use; of the others (a box over the edge) the usable part is kept.
    What is not ``skippable`` stops training whatever ``on_error`` says: its effect is unknown.
    """

    file: str
    entry: str
    what: str
    fatal: bool = True
    skippable: bool = True

    def __str__(self) -> str:
        return f"{self.file}: {self.entry}: {self.what}" if self.entry else f"{self.file}: {self.what}"


def list_problems(problems: Sequence[Problem], most: int = 3) -> Iterator[str]:
    """The first few as text, not too long for a line; the file is named where it is another."""
    listed, length = 0, 0
    for place, problem in enumerate(problems[:most]):
        same = place > 0 and problems[place - 1].file == problem.file and problem.entry
        text = f"{problem.entry}: {problem.what}" if same else str(problem)
        length += len(problem.entry) + len(problem.what)
        if listed and length > LONGEST:
            break
        listed += 1
        yield text
    if len(problems) > listed:
        yield f"and {len(problems) - listed} more"


def by_kind(problems: Sequence[Problem], most: int = 20) -> Iterator[str]:
    """Lists the first few problems of each kind, one per line, and counts the others of the kind."""
    counts = Counter(_kind(problem) for problem in problems)
    listed: Counter[tuple[str, str]] = Counter()
    for problem in problems:
        kind = _kind(problem)
        listed[kind] += 1
        if listed[kind] <= most:
            yield str(problem)
        elif listed[kind] == counts[kind]:
            yield f"{problem.file}: and {counts[kind] - most} more like the last: {problem.what}"


def _kind(problem: Problem) -> tuple[str, str]:
    """The kind of a problem: its file and text without numbers, paths and quoted parts."""
    return problem.file, re.sub(r"""\[[^]]*\]|"[^"]*"|'[^']*'|\S*[/\d]\S*""", "#", problem.what)


class Checked(Protocol):
    """Any split of a data set in which problems were looked for."""

    @property
    def problems(self) -> list[Problem]: ...


def say(name: object, remarks: Sequence[str]) -> None:
    """Logs assumptions about a file as warnings."""
    for remark in remarks:
        logger.warning("%s: %s", name, remark)


def decide(checked: Checked, on_error: Literal["raise", "skip"]) -> None:
    """Stops at a data set with problems, or warns that what is wrong with it is left out.

    Raises:
        DataError: there are problems and they are not to be skipped, or cannot be.
    """
    if not checked.problems:
        return
    hopeless = [problem for problem in checked.problems if not problem.skippable]
    if on_error == "skip" and hopeless:
        raise DataError(f"{'; '.join(list_problems(hopeless))}; this cannot be skipped: fix it")
    found = "; ".join(list_problems(checked.problems))
    if on_error == "raise":
        raise DataError(f"{found}. focalnet check-data lists all; data.on_error skip leaves such entries out")
    logger.warning("left out what is wrong with the annotations: %s", found)
