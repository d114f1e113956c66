"""Tables of predictions as CSV or Parquet files, which pandas, Excel and databases read."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from focalnet.errors import ConfigError, require
from focalnet.files import atomic, write


def check_table(path: Path) -> None:
    """Raises ``ConfigError`` unless a table can have this name, and ``MissingDependency`` without what writes it."""
    if path.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"{path}: a table is a .csv or a .parquet file")
    if path.suffix == ".parquet":
        require("pyarrow", "train")


def write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Writes a table; its columns are the keys of the rows, in order of appearance.

    A CSV file is UTF-8; a value that is None is empty there, and null in Parquet.

    Args:
        rows: numbers, text, booleans or None by column.
        path: ending in ``.csv`` or ``.parquet``.

    Raises:
        ConfigError: another ending.
        MissingDependency: Parquet needs pyarrow.
        FocalNetError: the file cannot be written.
    """
    check_table(path)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".csv":
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        return write(path, text.getvalue().encode(errors="backslashreplace"))
    arrow, parquet = require("pyarrow", "train"), require("pyarrow.parquet", "train")
    with atomic(path) as part:
        parquet.write_table(arrow.table({name: [_text(row.get(name)) for row in rows] for name in columns}), part)
    return path


def _text(value: Any) -> Any:
    """Text that is UTF-8: bytes of a file name that are not are escaped."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
