"""The pages of the documentation, their fenced blocks, and the commands of ``focalnet`` in these blocks."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")))
SHELL = ("", "bash", "console", "shell", "sh")
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# `focalnet ...` itself, or below a launcher such as torchrun or srun.
_LAUNCHER = r"(?:(?:srun|torchrun|python|python3) (?:\S+ )*?)?"
_COMMAND = re.compile(rf"^(?:\$ )?{_LAUNCHER}(?:focalnet|-m focalnet(?:\.cli\.main)?) (.+)$")


@dataclass(frozen=True)
class Block:
    """A fenced block; ``line`` is that of its first line, counted from 1."""

    page: str
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """What follows ``focalnet`` in a line of a block."""

    page: str
    line: int
    text: str

    @property
    def arguments(self) -> list[str]:
        return shlex.split(self.text)

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {self.text}"


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text.count("\n```") + text.startswith("```") == 2 * len(_FENCE.findall(text)), f"{page}: an unpaired fence"
    return [Block(page, text.count("\n", 0, found.start(2)) + 1, found[1], found[2]) for found in _FENCE.finditer(text)]


def code(page: str) -> list[Block]:
    return [block for block in blocks(page) if block.language == "python"]


def commands(page: str) -> list[Command]:
    found = []
    for block in blocks(page):
        if block.language in SHELL:
            # A command that continues on the next line stays one line, with blank lines after it.
            text = re.sub(r"\\\n", lambda _: "\x00", block.text)
            line = block.line
            for written in text.split("\n"):
                whole = re.sub(r"\s*\x00\s*", " ", written)
                if match := _COMMAND.match(re.split(r"\s+# ", whole)[0].strip()):
                    found.append(Command(page, line, match[1].strip()))
                line += 1 + written.count("\x00")
    return found
