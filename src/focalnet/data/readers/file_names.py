"""Matches file names in annotations with the files that exist.

Annotations are written on one machine and read on another: with Windows' separators, whole paths of a foreign disk,
``%20`` for a space, accents in one character or in two, another case. Such a name is matched where it can mean one file
only. The same holds for pairs of images and masks.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import parse_qs, unquote

#: A name in comparable form: the folders and the file, without what differs between machines.
Parts: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class NameMatches:
    """The file that each name refers to.

    Args:
        files: file by name, without names that refer to no file or could refer to several.
        ambiguous: by name, the files it could refer to; or the one file that several names could refer to.
    """

    files: dict[str, str]
    ambiguous: dict[str, tuple[str, ...]]

    def remark(self) -> str | None:
        """Says how many names are spelled differently from their file, with an example; None if there are none."""
        other = [(name, file) for name, file in self.files.items() if name != file]
        if not other:
            return None
        name, file = other[0]
        count = f"{len(other)} of {len(self.files)} file names"
        return f'{count} are spelled differently from the files, e.g. "{name}" is "{file}"'

    def why_ambiguous(self, name: str) -> str:
        """Says which files an ambiguous name could refer to."""
        files = self.ambiguous[name]
        if len(files) == 1:
            return f"it and other names may all mean {files[0]}; write each file's path as it is"
        shown = ", ".join(files[:3]) + ", ..." * (len(files) > 3)
        return f"it may mean {len(files)} files ({shown}); write the path as it is"


def match_names(names: Iterable[str], files: Iterable[str], *, base_names: bool = False) -> NameMatches:
    """Finds the file that each name refers to.

    Exact names come first. Then the same path counts in another spelling: separators, ``.`` and ``..``, Unicode
    normalization; then ``%20`` and addresses; then the case of letters. Then a path of which the other is the end; and
    of a path from another machine the name of the file alone, where neither a name nor a file shares it. A file that a
    name means exactly is not given to another name.

    Args:
        names: paths as they are written in annotations.
        files: existing paths, relative to one folder, with ``/``.
        base_names: treat every name as a path from another machine.
    """
    wanted, present = list(dict.fromkeys(names)), dict.fromkeys(files)
    found = {name: name for name in wanted if name in present}
    taken = set(found)
    free = [file for file in present if file not in taken]
    left = [name for name in wanted if name not in found]
    candidates = {name: some for name, some in _candidates(left, free, wanted, base_names).items() if some}
    uses = Counter(some[0] for some in candidates.values() if len(some) == 1)
    sure = {name: some[0] for name, some in candidates.items() if len(some) == 1 and uses[some[0]] == 1}
    ambiguous = {name: some for name, some in candidates.items() if name not in sure}
    in_order = {name: (found | sure)[name] for name in wanted if name in found or name in sure}
    return NameMatches(in_order, ambiguous)


def last_parts(address: str, count: int) -> str:
    """The last parts of a path or URL, as a path: ``train2017/1.jpg`` of ``http://host/train2017/1.jpg``."""
    return "/".join(_decoded(address)[-count:])


def _candidates(
    names: Sequence[str], files: Sequence[str], all_names: Sequence[str], base_names: bool
) -> dict[str, tuple[str, ...]]:
    """The files that each name could refer to, by the strictest comparison that finds any."""
    spellings: tuple[Callable[[str], Parts], ...] = (_clean, _decoded, _folded)
    indices = [_by_parts(files, spelling) for spelling in spellings]
    by_last = [_by_last(files, spelling) for spelling in spellings]
    last_of_names = Counter(_folded(name)[-1:] for name in all_names)

    def of(name: str) -> tuple[str, ...]:
        for spelling, index in zip(spellings, indices, strict=True):
            if some := index.get(spelling(name)):
                return tuple(some)
        for spelling, same_last in zip(spellings, by_last, strict=True):
            parts = spelling(name)
            near = [file for file, other in same_last.get(parts[-1:], ()) if _is_end(parts, other)]
            if near:
                return tuple(near)
        if (base_names or _is_foreign(name)) and last_of_names[_folded(name)[-1:]] == 1:
            return tuple(file for file, _ in by_last[-1].get(_folded(name)[-1:], ()))
        return ()

    return {name: of(name) for name in names}


def _by_parts(files: Sequence[str], spelling: Callable[[str], Parts]) -> dict[Parts, list[str]]:
    index: dict[Parts, list[str]] = defaultdict(list)
    for file in files:
        index[spelling(file)].append(file)
    return index


def _by_last(files: Sequence[str], spelling: Callable[[str], Parts]) -> dict[Parts, list[tuple[str, Parts]]]:
    index: dict[Parts, list[tuple[str, Parts]]] = defaultdict(list)
    for file in files:
        parts = spelling(file)
        index[parts[-1:]].append((file, parts))
    return index


def _is_end(one: Parts, other: Parts) -> bool:
    """Whether the shorter of two paths is the end of the longer."""
    count = min(len(one), len(other))
    return count > 0 and one[-count:] == other[-count:]


def _is_foreign(name: str) -> bool:
    """Whether a name is an absolute path of some machine, or a URL."""
    return bool(re.match(r"[/\\]|[A-Za-z]:[/\\]|[A-Za-z][A-Za-z0-9+.-]*://", name.strip()))


def _clean(name: str) -> Parts:
    """Splits a path with unified separators and accents, without ``.``, ``..`` and drive letters."""
    text = unicodedata.normalize("NFC", name.strip()).replace("\\", "/")
    parts: list[str] = []
    for part in text.split("/"):
        if part == ".." and parts:
            parts.pop()
        elif part not in ("", ".", "..") and not re.fullmatch(r"[A-Za-z]:", part):
            parts.append(part)
    return tuple(parts)


def _decoded(name: str) -> Parts:
    """As ``_clean``, with URL escapes decoded; of a URL, the path, or the path in its query."""
    text = name.strip()
    if query := re.match(r"(?:[A-Za-z][A-Za-z0-9+.-]*://|/)[^?#]*\?([^#]*)", text):
        paths = parse_qs(query[1]).get("d")  # as Label Studio serves local files
        text = paths[-1] if paths else text.partition("?")[0]
    if scheme := re.match(r"[A-Za-z][A-Za-z0-9+.-]*://[^/]*", text):
        text = text[scheme.end() :].partition("#")[0]
    return _clean(unquote(text))


def _folded(name: str) -> Parts:
    """As ``_decoded``, in lower case."""
    return tuple(part.casefold() for part in _decoded(name))
