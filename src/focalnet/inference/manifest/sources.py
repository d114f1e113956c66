"""What names the images of a job: text files, Parquet files, tar files and folders, read range by range.

No source is ever held in memory: of a text file there is one offset for each shard, a Parquet file is read in batches
of its row groups, a tar file in its own order, and a folder is listed to a file. This
file is long because it has every kind of source: each is short, and all have the same contract.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from focalnet.data.images import SUFFIXES, is_image
from focalnet.errors import ConfigError, DataError, FocalNetError, ImageError, require

if TYPE_CHECKING:
    import numpy.typing as npt

#: Suffixes of files that are manifests and not images.
MANIFESTS = (".txt", ".parquet", ".tar")
MOST_SHARDS = 1_000_000
LONGEST_PATH = 1 << 16  # bytes
LARGEST_FILE = 1 << 29  # bytes, within a tar file
_BLOCK = 1 << 22  # bytes read at once
_ROWS = 1024  # rows of Parquet decoded at once


class Row(NamedTuple):
    """A row of a manifest.

    Args:
        number: within its source, from 0.
        path: what it names; of an image within a tar file the path of that and of the image inside.
        content: the encoded image, where the source holds it itself.
        error: why there is no image.
    """

    number: int
    path: str | None
    content: bytes | None = None
    error: str | None = None


class Unreadable(BytesIO):
    """A row without an image, in place of a file that is opened: reading says why."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason

    def read(self, size: int | None = -1, /) -> bytes:
        raise ImageError(self.reason)


class Encoded(BytesIO):
    """An encoded image with the name that messages call it."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


class Source(ABC):
    """One file or folder of a manifest.

    Attributes:
        path: where it is.
        file: what is read; of a folder the file in which it is listed.
        count: number of rows; None of a tar file, which is counted when it is read.
        sha256: of what it says; two sources with the same have the same rows.
    """

    count: int | None
    sha256: str

    def __init__(self, path: Path, file: Path | None = None) -> None:
        self.path, self.file = path, file or path
        self._opened = _state(self.file)

    def rows(self, start: int, stop: int | None) -> Iterator[Row]:
        """Yields the rows of a range, in order.

        Args:
            start: the first, which is the first of a shard; with ``stop=None`` it is 0, and all rows are read.
            stop: the one after the last.

        Raises:
            DataError: the source cannot be read, or is not what it was when it was opened.
        """
        with _reading(self.path):
            if _state(self.file) != self._opened:
                raise DataError(f"{self.path}: was changed since the run began; begin anew with another --out")
            yield from self._rows(start, stop)

    @abstractmethod
    def _rows(self, start: int, stop: int | None) -> Iterator[Row]: ...


class TextFile(Source):
    """Paths in UTF-8 or any other encoding that file names have, one a line; the last line may end with a break.

    Args:
        path: the file.
        rows_per_shard: the file is indexed by ranges of so many rows.
        listing: the file to read instead, with paths that end in zero bytes.

    Raises:
        DataError: it cannot be read, or is in UTF-16.
    """

    def __init__(self, path: Path, rows_per_shard: int, listing: Path | None = None) -> None:
        super().__init__(path, listing)
        self._separator, self._rows_per_shard = b"\0" if listing else b"\n", rows_per_shard
        with _reading(path), self.file.open("rb") as file:
            if not listing and file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
                raise DataError(f"{path}: is in UTF-16; save it as UTF-8")
            file.seek(0)
            self.count, self._starts, self.sha256 = _index(file, self._separator, rows_per_shard)

    def _rows(self, start: int, stop: int | None) -> Iterator[Row]:
        assert stop is not None
        with self.file.open("rb") as file:
            file.seek(self._starts[start // self._rows_per_shard])
            for index, line in enumerate(islice(_split(file, self._separator), stop - start), start):
                yield self._row(index, line)

    def _row(self, index: int, line: bytes) -> Row:
        if self._separator == b"\n":
            line = line.removesuffix(b"\r")
            line = line.removeprefix(b"\xef\xbb\xbf") if index == 0 else line
        if not line:
            return Row(index, "", error=f"line {index + 1} is empty")
        if len(line) > LONGEST_PATH:
            path = os.fsdecode(line[:200])
            return Row(index, path, error=f"line {index + 1} is longer than {LONGEST_PATH} bytes")
        return Row(index, os.fsdecode(line))


class ParquetFile(Source):
    """A column of a Parquet file: paths as text, encoded images as bytes, or both as Hugging Face's ``Image``.

    Args:
        path: the file.
        column: its name; default: ``path``, or the only column that has such a type.

    Raises:
        ConfigError: there is no such column, or none or several that could be meant.
        DataError: it cannot be read.
        MissingDependency: pyarrow is not installed.
    """

    def __init__(self, path: Path, column: str | None = None) -> None:
        super().__init__(path)
        parquet = require("pyarrow.parquet", "train")
        with _reading(path), parquet.ParquetFile(path) as file:
            self._column = _column(file.schema_arrow, column, path)
            self._kind = holds(file.schema_arrow.field(self._column).type)
            self.count = file.metadata.num_rows
            with path.open("rb") as raw:
                self.sha256 = _hash_of_column(raw, file.metadata, self._column)

    def _rows(self, start: int, stop: int | None) -> Iterator[Row]:
        assert stop is not None
        parquet = require("pyarrow.parquet", "train")
        with parquet.ParquetFile(self.path, buffer_size=_BLOCK) as file:
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
            ends = np.cumsum(sizes)
            groups = [i for i, end in enumerate(ends) if end > start and end - sizes[i] < stop]
            if start >= stop or not groups:
                return
            here = int(ends[groups[0]]) - sizes[groups[0]]
            for batch in file.iter_batches(_ROWS, row_groups=groups, columns=[self._column]):
                values = batch.column(0)
                first, last = max(start - here, 0), min(stop - here, len(values))
                if first < last:
                    chosen = as_bytes(values.slice(first, last - first)).to_pylist()
                    for index, value in enumerate(chosen, here + first):
                        yield self._row(index, value)
                here += len(values)
                if here >= stop:
                    return

    def _row(self, index: int, value: Any) -> Row:
        path, content = (value, None) if self._kind == "paths" else (None, value)
        if isinstance(value, dict):
            path, content = value["path"], value["bytes"]
        if content is None and not path:
            what = "null" if path is None else "empty"
            return Row(index, None if path is None else "", error=f'row {index} of column "{self._column}" is {what}')
        return Row(index, os.fsdecode(path) if path else None, content)


class TarFile(Source):
    """The images of a tar file, as WebDataset writes it: each file in it with the suffix of one is a row.

    It has as many rows as are found when it is read, in one shard. Where it is damaged, a row with the error follows
    the images before that place.

    Args:
        path: the file.
    """

    count = None

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with _reading(path), path.open("rb") as file:
            self.sha256 = _hash_of_samples(file)

    def _rows(self, start: int, stop: int | None) -> Iterator[Row]:
        index, reason = 0, None
        try:
            with tarfile.open(self.path) as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                    if not member.isfile() or not is_image(Path(member.name)):
                        continue
                    name = f"{self.path}/{member.name}"
                    if member.size > LARGEST_FILE:
                        yield Row(index, name, error=f"{member.name}: is larger than {LARGEST_FILE >> 20} MiB")
                    else:
                        file = archive.extractfile(member)
                        assert file is not None  # of a regular file
                        yield Row(index, name, file.read())
                    index += 1
                assert archive.fileobj is not None
                archive.fileobj.seek(archive.offset)
                if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(
                    tarfile.BLOCKSIZE
                ):  # which every tar file ends with
                    reason = "its end is missing"
        except Exception as error:  # what a damaged file makes of a decoder and of numbers
            reason = " ".join(str(error).split())[:200] or type(error).__name__
        if reason is not None:
            message = f"{self.path}: is not a tar file, or damaged or cut short after {index} images: {reason}"
            yield Row(index, str(self.path), error=message)


@dataclass(frozen=True)
class Manifest:
    """The sources of a job, divided into shards: ranges of rows of one source.

    Args:
        sources: in order.
        rows_per_shard: rows in each shard of a source, except its last one; a tar file is one shard.

    Raises:
        ConfigError: there are more than ``MOST_SHARDS`` shards.
        DataError: there are no rows.
    """

    sources: Sequence[Source]
    rows_per_shard: int
    _ends: npt.NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        counts = [1 if one.count is None else -(-one.count // self.rows_per_shard) for one in self.sources]
        object.__setattr__(self, "_ends", np.cumsum(counts, dtype=np.int64))
        if not self.shards:
            raise DataError(f"{', '.join(str(one.path) for one in self.sources[:3])}: has no rows")
        if self.shards > MOST_SHARDS:
            raise ConfigError(
                f"{self.shards} shards of {self.rows_per_shard} rows are more than {MOST_SHARDS}: "
                "give a larger --rows-per-shard"
            )

    @property
    def shards(self) -> int:
        """Number of shards."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def count(self) -> int | None:
        """Number of rows; None with tar files, which are counted when they are read."""
        counts = [one.count for one in self.sources]
        return None if None in counts else sum(filter(None, counts))

    @property
    def sha256(self) -> str:
        """Of what all sources say, in order."""
        return hashlib.sha256("\n".join(one.sha256 for one in self.sources).encode()).hexdigest()

    def shard(self, number: int) -> tuple[int, int, int | None]:
        """The source of a shard, its first row there, and the one after the last; None for all rows."""
        source = int(np.searchsorted(self._ends, number, side="right"))
        count = self.sources[source].count
        if count is None:
            return source, 0, None
        start = (number - (int(self._ends[source - 1]) if source else 0)) * self.rows_per_shard
        return source, start, min(start + self.rows_per_shard, count)


def is_manifest(path: str | os.PathLike[str]) -> bool:
    """Whether a path, which may be a pattern of files, has the suffix of a manifest and is not a folder."""
    return Path(path).suffix.lower() in MANIFESTS and not Path(path).is_dir()


def open_manifest(
    paths: Iterable[str | os.PathLike[str]], rows_per_shard: int, *, listings: Path, column: str | None = None
) -> Manifest:
    """Opens the sources of a job, without reading their rows.

    Args:
        paths: text files, Parquet files and tar files, by their suffix; folders of images.
        rows_per_shard: rows in each shard.
        listings: folder in which folders are listed, to files named by what they list.
        column: of Parquet files.

    Raises:
        ConfigError: a path of another kind, or a column that does not exist.
        DataError: a source cannot be read, or there are no rows.
        MissingDependency: Parquet needs pyarrow.
    """
    files = [Path(path) for path in paths]
    suffixes = [path.suffix.lower() for path in files]
    if column is not None and ".parquet" not in suffixes:
        raise ConfigError("--column names a column of Parquet files, and there are none")
    sources: list[Source] = []
    for path, suffix in zip(files, suffixes, strict=True):
        if path.is_dir():
            sources.append(_folder(path, rows_per_shard, listings))
        elif not path.exists():
            raise DataError(f"{path}: no such file or folder")
        elif not path.is_file():
            raise DataError(f"{path}: is not a regular file")  # a pipe would be waited for
        elif suffix == ".txt":
            sources.append(TextFile(path, rows_per_shard))
        elif suffix == ".parquet":
            sources.append(ParquetFile(path, column))
        elif suffix == ".tar":
            sources.append(TarFile(path))
        else:
            raise ConfigError(f"{path}: a manifest is a .txt, .parquet or .tar file, or a folder of images")
    return Manifest(sources, rows_per_shard)


def _folder(folder: Path, rows_per_shard: int, listings: Path) -> TextFile:
    """The images of a folder and its subfolders, listed anew: one folder after another, each sorted."""
    with _writing(listings):
        listings.mkdir(parents=True, exist_ok=True)
        for left in listings.glob(".listing-*.part"):
            if time.time() - left.stat().st_mtime > 3600:  # whoever wrote it was killed
                left.unlink(missing_ok=True)
        part = listings / f".listing-{uuid.uuid4().hex}.part"
        digest = hashlib.sha256()
        try:
            with part.open("wb") as file:
                for path in _images(folder):
                    line = os.fsencode(path) + b"\0"
                    digest.update(line)
                    file.write(line)
            if not part.stat().st_size:
                raise DataError(
                    f"{folder}: no images there (looked for {' '.join(SUFFIXES)}); manifests in it are given as files"
                )
            listing = listings / f"_listing-{digest.hexdigest()[:16]}"
            if not listing.exists():  # otherwise it is the same, and may be in use
                os.replace(part, listing)
        finally:
            part.unlink(missing_ok=True)
    return TextFile(folder, rows_per_shard, listing)


def _images(folder: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed: {error.strerror}") from error

    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(parent, name) for name in sorted(files) if is_image(Path(name)))


def _index(file: IO[bytes], separator: bytes, every: int) -> tuple[int, npt.NDArray[np.int64], str]:
    """The number of lines, where each ``every``-th one starts, and the sha256."""
    digest, lines, size, last = hashlib.sha256(), 0, 0, separator
    starts = [np.zeros(1, np.int64)]
    while block := file.read(_BLOCK):
        digest.update(block)
        ends = np.flatnonzero(np.frombuffer(block, np.uint8) == separator[0])
        starts.append(ends[(every - 1 - lines) % every :: every] + size + 1)
        lines, size, last = lines + len(ends), size + len(block), block[-1:]
    return lines + (last != separator), np.concatenate(starts), digest.hexdigest()


def _split(file: IO[bytes], separator: bytes) -> Iterator[bytes]:
    """The lines of a file from where it is; of those that are too long the beginning, which is too long, too."""
    pending = b""
    while block := file.read(1 << 18):
        *complete, pending = (pending + block).split(separator)
        yield from complete
        pending = pending[: LONGEST_PATH + 1]
    if pending:
        yield pending


def _column(schema: Any, wanted: str | None, path: Path) -> str:
    """The column with the images; see ``ParquetFile``."""
    usable: list[str] = [one.name for one in schema if holds(one.type) is not None]
    if wanted is None:
        wanted = "path" if "path" in usable else usable[0] if len(usable) == 1 else None
    if wanted is None or wanted not in usable or schema.names.count(wanted) > 1:
        columns = ", ".join(usable) or "there is none"
        raise ConfigError(f"{path}: --column must name one column with paths as text, or images as bytes: {columns}")
    return wanted


def holds(of: Any) -> str | None:
    """What a column of a type holds: ``"paths"``, ``"images"``, ``"both"`` or None for anything else."""
    types = require("pyarrow", "train").types
    if types.is_dictionary(of):
        of = of.value_type
    if types.is_string(of) or types.is_large_string(of) or types.is_string_view(of):
        return "paths"
    if types.is_binary(of) or types.is_large_binary(of):
        return "images"
    if types.is_struct(of) and {"path", "bytes"} <= {of.field(i).name for i in range(of.num_fields)}:
        return "both" if (holds(of.field("path").type), holds(of.field("bytes").type)) == ("paths", "images") else None
    return None


def as_bytes(values: Any) -> Any:
    """Values of an Arrow column with text as its bytes, which need not be UTF-8."""
    arrow = require("pyarrow", "train")
    if arrow.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    return values.cast(arrow.large_binary()) if holds(values.type) == "paths" else values


def _hash_of_column(file: IO[bytes], metadata: Any, column: str) -> str:
    """The sha256 of a Parquet file's footer, and of the stored values of a column of text.

    Images are not read: what is stored beside them (sizes, places, statistics) is in the footer.
    """
    digest = hashlib.sha256()
    file.seek(-8, os.SEEK_END)
    footer = int.from_bytes(file.read(4), "little") + 8
    ranges = [(file.seek(0, os.SEEK_END) - footer, footer)]
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(index)
            if chunk.path_in_schema == column and chunk.physical_type == "BYTE_ARRAY":
                start = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)))
                ranges.append((start, chunk.total_compressed_size))
    for start, size in ranges:
        file.seek(start)
        while size > 0 and (block := file.read(min(size, _BLOCK))):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()


def _hash_of_samples(file: IO[bytes]) -> str:
    """The sha256 of a file's size, and of its content: of a large file 16 pieces, evenly spread."""
    size, piece = file.seek(0, os.SEEK_END), 1 << 14
    digest = hashlib.sha256(str(size).encode())
    for start in range(0, size, piece) if size <= 16 * piece else np.linspace(0, size - piece, 16, dtype=np.int64):
        file.seek(int(start))
        digest.update(file.read(piece))
    return digest.hexdigest()


def _state(path: Path) -> tuple[int, ...]:
    """What changes when a file is written or replaced."""
    with _reading(path):
        status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Within, what goes wrong is a ``DataError`` that names the file: pyarrow's errors have no base in common."""
    try:
        yield
    except FocalNetError:
        raise
    except Exception as error:  # Arrow and tar decoders raise many types for a damaged file
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        raise DataError(f"{path}: cannot be read: {' '.join(reason.split())[:300]}") from error


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FocalNetError(f"cannot write {folder}: {error.strerror}; choose another --out or make room") from error
