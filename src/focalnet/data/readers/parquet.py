"""Folders of Parquet files in the Hugging Face image layout, with splits as ``datasets.load_dataset`` finds them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from focalnet.data.readers.classes import number_classes
from focalnet.data.readers.source import Source
from focalnet.errors import DataError, FocalNetError, require

logger = logging.getLogger(__name__)

MOST_CLASSES = 1 << 20


def splits(root: Path) -> list[str]:
    """Names of the splits."""
    with _datasets(root) as datasets:
        return sorted(datasets.get_dataset_split_names(str(root)))


class Parquet(Source):
    """One split, through timm's reader. The columns with images and labels are found by their types, then by name.

    Labels are ``ClassLabel`` (its names are the class names), numbers or strings. ``datasets`` converts the
    files once, into its own cache (``HF_DATASETS_CACHE``), and maps that into memory.
    """

    def __init__(self, root: Path, split: str, titles: Mapping[str, str] | None = None) -> None:
        with _datasets(root) as datasets:
            from timm.data.readers.reader_factory import create_reader  # its reader of Parquet imports datasets

            self._image, label = _columns(root, datasets)
            reader = create_reader(f"hfds/{root}", split=split, input_key=self._image, target_key=label)
        self._rows: Any = reader.dataset
        self._name = f"{root} ({split})"
        stored = self._rows.data.column(self._image).chunks
        self._paths = [path for chunk in stored for path in chunk.field("path").to_pylist()]
        class_names, labels = _classes(self._rows, label, titles, self._name)
        super().__init__(self._name, class_names, labels)

    def content(self, index: int) -> Path | bytes:
        image = self._rows[index][self._image]
        return bytes(image["bytes"]) if image["bytes"] else Path(image["path"] or "")

    def path(self, index: int) -> str:
        return f"{self._name}/{self._paths[index] or f'row {index}'}"


def _columns(root: Path, datasets: ModuleType) -> tuple[str, str]:
    from pyarrow import parquet  # comes with datasets

    features = datasets.Features.from_arrow_schema(parquet.read_schema(next(iter(sorted(root.rglob("*.parquet"))))))

    def column(kind: type, names: Sequence[str]) -> str:
        typed: list[str] = [name for name, feature in features.items() if isinstance(feature, kind)]
        found = typed or [name for name in names if name in features]
        found = [name for name in names if name in found] or found
        if not found:
            raise DataError(f"{root}: no column {' or '.join(names)}; its columns are {', '.join(features)}")
        if len(found) > 1 and found[0] not in names:
            logger.warning("%s: of the columns %s, %s is read as %s", root, ", ".join(found), found[0], names[0])
        return found[0]

    return column(datasets.Image, ("image", "img")), column(datasets.ClassLabel, ("label", "labels"))


def _classes(
    rows: Any, column: str, titles: Mapping[str, str] | None, where: str
) -> tuple[Sequence[str], Sequence[int]]:
    values, feature = rows.data.column(column).to_pylist(), rows.features[column]
    if any(value is None or value == -1 for value in values):
        raise DataError(f"{where}: has images without a label")
    numbers = all(isinstance(value, int) and not isinstance(value, bool) for value in values)
    if numbers and values and not 0 <= min(values) <= max(values) < MOST_CLASSES:
        raise DataError(f"{where}: labels are {min(values)} to {max(values)}, not 0 to at most {MOST_CLASSES - 1}")
    if hasattr(feature, "names"):
        if values and max(values) >= len(feature.names):
            raise DataError(f"{where}: the label {max(values)} is not that of one of {len(feature.names)} classes")
        if titles is None:
            return feature.names, values
        values = [feature.names[value] for value in values]
    elif titles is None and values and numbers:
        return [str(label) for label in range(max(values) + 1)], values
    names = [str(value) for value in values]
    label_of, class_names = number_classes(names, titles, where)
    return class_names, [label_of[name] for name in names]


@contextmanager
def _datasets(root: Path) -> Iterator[ModuleType]:
    """The package ``datasets``, quiet; its many errors become ours."""
    datasets = require("datasets", "train")
    bars, readme = datasets.are_progress_bars_disabled(), logging.getLogger("huggingface_hub.repocard")
    level = readme.level
    datasets.disable_progress_bars()
    readme.setLevel(logging.ERROR)  # it warns of every README without a header for the hub
    try:
        yield datasets
    except FocalNetError:
        raise
    except Exception as error:  # pyarrow's, fsspec's and its own have no base in common
        raise DataError(f"{root}: cannot be read as Parquet: {' '.join(str(error).split())}") from error
    finally:
        readme.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
