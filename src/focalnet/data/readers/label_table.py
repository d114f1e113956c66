"""Tables of labels (CSV): a row for each image, its classes in one column or in a column of 0 and 1 for each."""

from __future__ import annotations

import csv
import io
import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress
from pathlib import Path, PurePosixPath
from typing import NoReturn, TypeAlias

from timm.utils.misc import natural_key

from focalnet.data.images import SUFFIXES
from focalnet.data.readers.classes import class_name
from focalnet.errors import DataError
from focalnet.reading import read_text

#: Names of the column of images, without anything but letters.
IMAGE_COLUMNS = frozenset(
    "image images img filename file filepath path imagepath imagename imageid imageindex imgpath fname".split()
)
COLUMN_SEPARATORS = ",;\t"
LABEL_DELIMITERS = "|;,"
YES, NO = ("1", "1.0", "true"), ("0", "0.0", "false")
UNKNOWN = ("nan", "<na>", "null")  # what programs write for a missing value

#: Takes the number of a line and what is wrong with it.
ReportLine: TypeAlias = Callable[[int, str], None]


@dataclass(frozen=True)
class Columns:
    """Which columns of a table say what; None of those that the table itself shows.

    Args:
        image: name of the column with the files of the images.
        label: name of the column with all labels of an image.
        classes: names of the columns of 0 and 1, one for each class.
        delimiter: between labels in one cell; the empty text where each cell has one label at most.
    """

    image: str | None = None
    label: str | None = None
    classes: tuple[str, ...] | None = None
    delimiter: str | None = None


@dataclass(frozen=True)
class LabelTable:
    """A table that was read.

    Args:
        path: of the file.
        images: names of the files, as they are written; all different.
        labels: of each image, the names of its classes.
        lines: of each image, the number of its line.
        classes: all classes: the columns in their order, or the labels of all rows, sorted.
        columns: how it was read, with nothing left open.
    """

    path: Path
    images: tuple[str, ...]
    labels: tuple[frozenset[str], ...]
    lines: tuple[int, ...]
    classes: tuple[str, ...]
    columns: Columns


@dataclass(frozen=True)
class _Rows:
    path: Path
    header: list[str]
    cells: list[list[str]]
    lines: list[int]

    def column(self, name: str) -> list[str]:
        """The cells of a column."""
        place = self.header.index(name)
        return [row[place] for row in self.cells]


def read_label_table(
    path: Path, columns: Columns = Columns(), classes: Sequence[str] = (), report: ReportLine | None = None
) -> LabelTable:
    """Reads a CSV file whose first line names its columns, separated by commas, semicolons or tabs.

    Args:
        path: of the file.
        columns: which of them say what; what is left open is read from the table, or refused where it could mean
            several things.
        classes: known ones; a label that reads like a missing value must be among them.
        report: is called for each row that is not what it should be, which is then left out; default: the first such
            row is an error.

    Raises:
        DataError: the file cannot be read, or a row is not what it should be; the message names file and line.
    """
    flawed: set[int] = set()
    refuse: ReportLine = partial(_refuse, path) if report is None else report

    def tell(line: int, what: str) -> None:
        flawed.add(line)
        refuse(line, what)

    rows = _read_rows(path, tell)
    image = _image_column(rows, columns.image)
    others = [name for name in rows.header if name != image]
    columns = replace(columns, image=image)
    if columns.classes is None and columns.label is None:
        columns = _label_columns(rows, others, columns)
    names = rows.column(image)
    if columns.classes is not None:
        for name in columns.classes:
            _check_column(rows, name, "data.class_columns")
        labels = _of_class_columns(rows, columns.classes, tell)
    else:
        assert columns.label is not None
        _check_column(rows, columns.label, "data.label_column")
        cells = rows.column(columns.label)
        if columns.delimiter is None:
            columns = replace(columns, delimiter=_delimiter(path, columns.label, cells))
        labels = _of_cells(rows, cells, columns.delimiter or "", frozenset(classes), tell)
    _check_names(rows, image, labels, tell)
    whole = [line not in flawed for line in rows.lines]
    names, labels, lines = (
        list(compress(names, whole)),
        list(compress(labels, whole)),
        list(compress(rows.lines, whole)),
    )
    if columns.classes is not None:
        shown = columns.classes
    else:
        shown = tuple(sorted(sorted(frozenset[str]().union(*labels)), key=natural_key))
    return LabelTable(path, tuple(names), tuple(labels), tuple(lines), shown, columns)


def _refuse(path: Path, line: int, what: str) -> NoReturn:
    raise DataError(f"{path}, line {line}: {what}")


def _read_rows(path: Path, report: ReportLine) -> _Rows:
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a table of labels: {error}") from error
    readings = [reading for separator in COLUMN_SEPARATORS if (reading := _split(path, text, separator))]
    if not readings:
        raise DataError(f"{path}: its first line must name two columns or more, as in image,labels")
    even = [rows for rows in readings if all(len(cells) == len(rows.header) for cells in rows.cells)]
    if len(readings) > 1 and len(even) != 1:
        raise DataError(f"{path}: its columns may be separated by several characters of {COLUMN_SEPARATORS!r}: use one")
    rows = even[0] if even else readings[0]
    whole = [len(cells) == len(rows.header) for cells in rows.cells]
    for cells, line, is_whole in zip(rows.cells, rows.lines, whole, strict=True):
        if not is_whole:
            report(line, f"has {len(cells)} columns, the first line names {len(rows.header)}")
    rows = replace(rows, cells=list(compress(rows.cells, whole)), lines=list(compress(rows.lines, whole)))
    if not rows.cells:
        raise DataError(f"{path}: has no rows below its first line")
    return _without_numbers(rows)


def _split(path: Path, text: str, separator: str) -> _Rows | None:
    """The rows of a table by one separator; None where that does not occur in the first line."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    cells, lines = [], []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                cells.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
    except csv.Error as error:
        if cells and len(cells[0]) < 2:
            return None
        raise DataError(f"{path}, line {reader.line_num}: is not CSV: {error}") from error
    if not cells or len(cells[0]) < 2:
        return None
    return _Rows(path, [class_name(name) for name in cells[0]], cells[1:], lines[1:])


def _without_numbers(rows: _Rows) -> _Rows:
    """The rows without a column of row numbers, which pandas writes without a name: whole numbers, all different.

    Raises:
        DataError: another column has no name, or two have the same.
    """
    kept = []
    for place, name in enumerate(rows.header):
        if name and not name.startswith("Unnamed: "):
            kept.append(place)
        elif not all(row[place].isdecimal() for row in rows.cells) or len({row[place] for row in rows.cells}) < len(
            rows.cells
        ):
            raise DataError(f"{rows.path}: its column {place + 1} has no name in the first line")
    header = [rows.header[place] for place in kept]
    for name in header:
        if header.count(name) > 1:
            raise DataError(f'{rows.path}: names the column "{name}" twice')
    return _Rows(rows.path, header, [[row[place] for place in kept] for row in rows.cells], rows.lines)


def _check_column(rows: _Rows, name: str, option: str) -> None:
    if name not in rows.header:
        raise DataError(f'{rows.path}: has no column "{name}" ({option}); it has {", ".join(rows.header)}')


def _image_column(rows: _Rows, wanted: str | None) -> str:
    """The column of the images: the one that is asked for, the only one of file names, or the only one named so."""
    if wanted is not None:
        _check_column(rows, wanted, "data.image_column")
        return wanted
    of_files = [name for name in rows.header if all(has_image_suffix(cell) for cell in rows.column(name))]
    named = [name for name in rows.header if re.sub(r"[^a-z]", "", name.casefold()) in IMAGE_COLUMNS]
    for candidates in (of_files, named):
        if len(candidates) == 1:
            return candidates[0]
    raise DataError(
        f"{rows.path}: which of its columns names the images? data.image_column says it; it has "
        f"{', '.join(rows.header)}"
    )


def has_image_suffix(name: str) -> bool:
    """Whether a name ends as those of images do."""
    return PurePosixPath(name.replace("\\", "/")).suffix.lower() in SUFFIXES


def _label_columns(rows: _Rows, others: Sequence[str], columns: Columns) -> Columns:
    """Where the labels are: in a column of 0 and 1 for each class, or in the only other column."""
    binary = [name for name in others if all(cell.casefold() in YES + NO for cell in rows.column(name))]
    if len(others) > 1 and len(binary) == len(others):
        return replace(columns, classes=tuple(others))
    if len(others) == 1 and not binary:
        return replace(columns, label=others[0])
    raise DataError(
        f"{rows.path}: which columns hold the labels? Of {', '.join(others) or 'no others'}, data.label_column names "
        "the one with all labels of an image, or data.class_columns those of 0 and 1, one for each class"
        + _odd_cell(rows, binary, others)
    )


def _odd_cell(rows: _Rows, binary: Sequence[str], others: Sequence[str]) -> str:
    """The first cell that is not 0 or 1 in columns that mostly are, for a message."""
    for name in (name for name in others if name not in binary):
        cells = [cell.casefold() for cell in rows.column(name)]
        odd = [place for place, cell in enumerate(cells) if cell not in YES + NO]
        if 2 * len(odd) < len(cells):
            return f'; line {rows.lines[odd[0]]} has "{cells[odd[0]]}" in column "{name}", where others have 0 or 1'
    return ""


def _check_names(rows: _Rows, image: str, labels: Sequence[frozenset[str]], report: ReportLine) -> None:
    """Reports rows without an image, or with that of an earlier row."""
    first: dict[str, int] = {}
    for place, (name, line) in enumerate(zip(rows.column(image), rows.lines, strict=True)):
        if not name or name.casefold() in UNKNOWN:
            report(line, f'names no image in column "{image}"')
            continue
        before = first.setdefault(posixpath.normpath(name.replace("\\", "/")), place)
        if before != place:
            same = "the same labels" if labels[before] == labels[place] else "different labels"
            report(
                line,
                f'"{name}" is in lines {rows.lines[before]} and {line}; each image needs one row with all of its '
                f"labels, and these have {same}",
            )


def _of_class_columns(rows: _Rows, classes: Sequence[str], report: ReportLine) -> list[frozenset[str]]:
    labels: list[set[str]] = [set() for _ in rows.cells]
    for name in classes:
        for found, cell, line in zip(labels, rows.column(name), rows.lines, strict=True):
            if cell.casefold() in YES:
                found.add(name)
            elif cell.casefold() not in NO:
                what = f'"{cell}"' if cell else "nothing"
                report(line, f'has {what} in column "{name}", where 0 or 1 is needed')
    return [frozenset(found) for found in labels]


def _delimiter(path: Path, label: str, cells: Sequence[str]) -> str:
    """What is between the labels of a cell: one of ``LABEL_DELIMITERS``, or nothing.

    Raises:
        DataError: it may be several, or a space that may as well be within a name.
    """
    way_out = 'data.label_delimiter says what is between two labels, as in "|" or " "'
    if any(cell.startswith(("[", "{", "(")) for cell in cells):
        raise DataError(f'{path}: its column "{label}" holds lists in brackets: write labels as cat|dog')
    found = [delimiter for delimiter in LABEL_DELIMITERS if any(delimiter in cell for cell in cells)]
    if len(found) > 1:
        raise DataError(f'{path}: its column "{label}" has {" and ".join(found)} in its cells; {way_out}')
    if not found and (spaced := next((cell for cell in cells if len(cell.split()) > 1), None)):
        raise DataError(f'{path}: is "{spaced[:60]}" in column "{label}" one label or several? {way_out}')
    return found[0] if found else ""


def _of_cells(
    rows: _Rows, cells: Sequence[str], delimiter: str, known: frozenset[str], report: ReportLine
) -> list[frozenset[str]]:
    labels = []
    for cell, line in zip(cells, rows.lines, strict=True):
        parts = [cell] if not delimiter else cell.split() if delimiter.isspace() else cell.split(delimiter)
        found = frozenset(class_name(part.strip()) for part in parts if part.strip())
        for name in sorted(found - known):
            if name.casefold() in UNKNOWN:
                report(
                    line,
                    f'has the label "{name}"; leave the cell empty for an image of no class, or list the class in a '
                    "data.class_map",
                )
        labels.append(found)
    return labels
