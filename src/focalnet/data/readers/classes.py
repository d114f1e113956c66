"""Which name in the data is which label, and what to call it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from timm.utils.misc import natural_key

from focalnet.data.readers.text import read_text
from focalnet.errors import DataError, did_you_mean


def read_class_map(path: Path) -> dict[str, str]:
    """Reads a text file with one class a line, in label order: its name in the data, then optionally a tab and a title.

    Returns:
        Title by name; a name without a title is its own.

    Raises:
        DataError: the file cannot be read, is empty or names a class twice.
    """
    try:
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a list of classes: {error}") from error
    pairs = [line.partition("\t") for line in lines if line.strip()]
    titles = {name.strip(): title.strip() or name.strip() for name, _, title in pairs}
    if not titles:
        raise DataError(f"{path}: lists no classes; one name a line, in label order")
    if len(titles) < len(pairs):
        raise DataError(f"{path}: names a class twice")
    return titles


def number_classes(
    found: Iterable[str], titles: Mapping[str, str] | None, where: str
) -> tuple[dict[str, int], list[str]]:
    """Numbers the class names found in the data: by the user's list, else in natural order ("2" before "10").

    Returns:
        Label by name, and titles by label.

    Raises:
        DataError: the data hold a class that the list does not.
    """
    names = sorted(set(found), key=natural_key)
    if titles is None:
        return {name: label for label, name in enumerate(names)}, names
    unknown = [name for name in names if name not in titles]
    if unknown:
        raise DataError(f'{where}: class "{unknown[0]}" is not in the class map{did_you_mean(unknown[0], titles)}')
    return {name: label for label, name in enumerate(titles)}, list(titles.values())


def read_class_names(path: Path) -> tuple[tuple[str, ...], int | None]:
    """Reads the names of classes in label order, and the number to ignore in label maps where the file says it.

    Three formats: JSON, ``["sky", ...]`` or ``{"classes": ["sky", ...], "ignore_index": 11}``; text with a name a line;
    ADE20K's ``objectInfo150.txt``, a table whose column ``Name`` counts, up to its first semicolon.

    Raises:
        DataError: the file has none of them.
    """
    try:
        text = read_text(path)
        if path.suffix != ".json":
            lines = text.splitlines()
            if not lines or not lines[0].startswith("Idx"):
                return tuple(read_class_map(path).values()), None
            rows = csv.DictReader(lines, delimiter="\t" if "\t" in lines[0] else ",")
            return tuple(row["Name"].partition(";")[0].strip() for row in rows), None
        content = json.loads(text)
        if isinstance(content, list):
            content = {"classes": content}
        named, ignored = content["classes"], content.get("ignore_index")
        if not (named and all(isinstance(name, str) for name in named) and isinstance(ignored, int | None)):
            raise ValueError("it must be a list of names, or have one as classes and a number as ignore_index")
    except (OSError, ValueError, KeyError, TypeError) as error:  # ValueError: no JSON, no UTF-8
        raise DataError(f"{path}: cannot be read as a list of classes: {error}") from error
    return tuple(named), ignored
