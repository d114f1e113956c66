"""Which name in the data is which label, and what to call it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from timm.utils.misc import natural_key

from focalnet.errors import DataError, did_you_mean


def read_class_map(path: Path) -> dict[str, str]:
    """Reads a text file with one class a line, in label order: its name in the data, then optionally a tab and a title.

    Returns:
        Title by name; a name without a title is its own.

    Raises:
        DataError: the file cannot be read, is empty or names a class twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
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
