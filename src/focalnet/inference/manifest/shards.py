"""The rows of results and the files of shards, as Parquet or JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from focalnet.errors import ConfigError, FocalNetError, require, require_installed
from focalnet.files import atomic

if TYPE_CHECKING:
    from focalnet.results import Result

Format = Literal["parquet", "jsonl"]
FORMATS: tuple[Format, ...] = ("parquet", "jsonl")
_FLUSHED = 1 << 26  # bytes of Arrow data per row group of Parquet
_CONVERTED = 256  # rows that are Python objects at a time

#: Fields of a row beside ``source``, ``row``, ``path`` and ``error``, by the model's kind of results: names and types
#: of Arrow. ``segmentation`` is null without masks.
_MASK = {"size": ["int32"], "counts": "string"}
_SIZE = {"height": "int32", "width": "int32"}
_CLASS = {"label": "int32", "name": "string"}
_OBJECT = {**_CLASS, "score": "float64", "box": ["float64"], "segmentation": _MASK}
_SEGMENT = {"id": "int32", "label": "int32", "is_thing": "bool", "score": "float64", "area": "int64", "name": "string"}
FIELDS: dict[str, dict[str, Any]] = {
    "classification": {"top": [{**_CLASS, "score": "float64"}]},
    "multilabel": {"labels": [{**_CLASS, "score": "float64"}]},
    "detection": {**_SIZE, "objects": [_OBJECT]},
    "instance": {**_SIZE, "objects": [_OBJECT]},
    "semantic": {**_SIZE, "classes": [{**_CLASS, "share": "float64", "segmentation": _MASK}]},
    "panoptic": {**_SIZE, "segments": [{**_SEGMENT, "segmentation": _MASK}]},
}


def check_format(shard_format: str) -> None:
    """Raises ConfigError for an unknown format, MissingDependency without the package that it needs."""
    if shard_format not in FORMATS:
        raise ConfigError(f"format {shard_format}: shards are {' or '.join(FORMATS)}")
    if shard_format == "parquet":
        require_installed("pyarrow", "train")


def values_of(result: Result | FocalNetError, output: str) -> dict[str, Any]:
    """The fields of a row that a result fills, masks included: ``error`` and those of ``FIELDS``; others are None."""
    if isinstance(result, FocalNetError):
        return {"error": text(str(result)), **dict.fromkeys(FIELDS[output])}
    values = result.to_dict(masks=True)
    values.pop("path")
    return {"error": None, **values}


def text(value: str | None) -> str | None:
    """Text that is UTF-8: bytes of a file name that are not are escaped."""
    return None if value is None else value.encode(errors="backslashreplace").decode()


def schema(output: str) -> Any:
    """The schema of a Parquet shard (``pyarrow.Schema``).

    Args:
        output: the model's kind of results.
    """
    arrow = require("pyarrow", "train")
    names = [("source", "string"), ("row", "int64"), ("path", "string")]
    head = [arrow.field(name, arrow.type_for_alias(of)) for name, of in names]
    return arrow.schema([*head, *result_fields(output)])


def result_fields(output: str) -> list[Any]:
    """The columns that results fill (``pyarrow.Field``): ``error`` and those of ``FIELDS``."""
    arrow = require("pyarrow", "train")

    def type_of(of: Any) -> Any:
        if isinstance(of, list):
            return arrow.list_(type_of(of[0]))
        if isinstance(of, dict):
            return arrow.struct([arrow.field(name, type_of(inner)) for name, inner in of.items()])
        return arrow.type_for_alias(of)

    return [arrow.field(name, type_of(of)) for name, of in {"error": "string", **FIELDS[output]}.items()]


@contextmanager
def write_shard(path: Path, output: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields a function that adds a row; the file, by its suffix Parquet or JSON lines, appears when all are written.

    Raises:
        FocalNetError: it cannot be written.
    """
    with atomic(path) as part:
        if path.suffix == ".parquet":
            with _parquet(part, output) as add:
                yield add
        else:
            with part.open("w", encoding="ascii") as file:

                def add_line(row: dict[str, Any]) -> None:
                    file.write(json.dumps(row) + "\n")

                yield add_line


@contextmanager
def _parquet(path: Path, output: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    arrow, parquet = require("pyarrow", "train"), require("pyarrow.parquet", "train")
    columns = schema(output)
    rows: list[dict[str, Any]] = []
    batches: list[Any] = []

    def convert() -> None:
        batches.append(arrow.RecordBatch.from_pylist(rows, columns))
        rows.clear()

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        if len(rows) >= _CONVERTED:
            convert()
            if len(batches) % 16 == 0 and sum(batch.nbytes for batch in batches) >= _FLUSHED:
                writer.write_table(arrow.Table.from_batches(batches))
                batches.clear()

    with parquet.ParquetWriter(path, columns, compression="zstd") as writer:
        yield add
        convert()
        writer.write_table(arrow.Table.from_batches(batches))
