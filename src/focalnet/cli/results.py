"""The files that ``focalnet predict`` writes: a drawing of each result, and lists of all results."""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from focalnet.errors import ConfigError, DataError, FocalNetError
from focalnet.files import atomic

if TYPE_CHECKING:
    from focalnet.models import Model
    from focalnet.results import Result

logger = logging.getLogger(__name__)

#: What the names of files that belong to an image end in.
ENDINGS = ("-prediction.png", "-prediction.mp4", "-prediction.json", ".labels.png", ".panoptic.png")


class Results:
    """Writes results: drawings and label maps at once, the lists of all results at the end.

    Until then ``predictions.jsonl`` keeps what is finished, whatever happens: the first line is a header, each other
    line the entries of one image in the lists. The lists are made of it, line by line, so that the number of images
    does not matter.

    Args:
        folder: output folder; None to write nothing.
        model: its name in the lists.
        ids: COCO ids of images and categories; None for a classifier.
        table: file to write a table of all results to, if any.
    """

    def __init__(self, folder: Path | None, model: str, ids: Ids | None, table: Path | None = None) -> None:
        self.folder, self.ids, self.table = folder, ids, table
        self.header: dict[str, Any] = {"model": model} | ({"categories": ids.categories()} if ids else {})
        self.count = 0
        self._rows: list[dict[str, Any]] = []
        self._coco: dict[str, None] = {}  # names of lists, in order
        self._lines: TextIO | None = None

    @property
    def lines(self) -> Path:
        """The file that keeps what is finished."""
        assert self.folder is not None
        return self.folder / "predictions.jsonl"

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within, an error says where what was finished before it is."""
        try:
            yield
        except FocalNetError as error:
            if self._lines is None:
                raise
            done = f"{self.count} image{'s' * (self.count != 1)}"
            raise type(error)(f"{error}; {self.lines} keeps the results of the {done} before it") from error
        finally:
            if self._lines is not None:
                self._lines.close()

    def add(self, result: Result, name: str) -> None:
        """Adds a result; the names of its files start with ``name``.

        Raises:
            FocalNetError: it cannot be written; the lists have nothing of it then.
        """
        entry = result.to_dict()
        coco: dict[str, list[dict[str, Any]]] = {}
        if self.ids is not None:
            entry["image_id"] = self.ids.image(Path(str(result.path)), self.count + 1)
        if self.folder is not None:
            entry["picture"] = str(result.save(self.folder / f"{name}-prediction.png"))
            entry |= result.write_maps(self.folder, name)
            if self.ids is not None:
                coco = result.coco_entries(entry["image_id"], self.ids.category_ids, name)
            self._write_line({"prediction": entry, "coco": coco})
        if self.table is not None:
            self._rows += [{"path": result.path, **row} for row in result.table_rows()]
        self.count += 1
        self._coco |= dict.fromkeys(coco)

    def add_rows(self, path: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds the rows of a video to the table."""
        self._rows += [{"path": path, **row} for row in rows]

    def write_table(self) -> str:
        """Writes the table; returns a message with its name."""
        from focalnet.results.tables import write_table

        assert self.table is not None
        return f"wrote {len(self._rows)} rows to {write_table(self._rows, self.table)}"

    def write(self) -> str:
        """Writes the lists; returns a message with the names of the files."""
        assert self.folder is not None
        assert self._lines is not None
        self._lines.close()
        header = dict(self.header)
        files: dict[str, Any] = {"predictions.json": {"model": header.pop("model"), "predictions": _LIST, **header}}
        if "detections" in self._coco:
            files["detections.json"] = _LIST
        if "annotations" in self._coco:
            files["panoptic.json"] = {**dict.fromkeys(self._coco, _LIST), **header}
        for name, content in files.items():
            with atomic(self.folder / name) as part, part.open("wb") as file:
                for piece in self._pieces(name, content):
                    file.write(piece.encode(errors="backslashreplace"))
        self.lines.unlink(missing_ok=True)
        return f"wrote {self.count} images and {' and '.join(files)} to {self.folder}"

    def _pieces(self, name: str, content: Any) -> Iterator[str]:
        """The text of a file whose lists come from the lines."""
        lists = ["detections"] if content == _LIST else [key for key, value in content.items() if value == _LIST]
        text = _json(content).split(_json(_LIST))
        for before, key in zip(text, lists, strict=False):
            yield before
            yield from self._entries(key, depth=0 if content == _LIST else 1)
        yield text[-1]

    def _entries(self, key: str, depth: int) -> Iterator[str]:
        """A list in JSON, entry by entry, as it would be written in one piece."""
        first = True
        with self.lines.open(encoding="ascii") as file:
            next(file)  # the header
            for line in file:
                kept = json.loads(line)
                for entry in [kept["prediction"]] if key == "predictions" else kept["coco"].get(key, []):
                    yield "[\n" if first else ",\n"
                    margin = "  " * (depth + 1)
                    yield margin + _json(entry).replace("\n", "\n" + margin)  # names may hold other line separators
                    first = False
        yield "[]" if first else f"\n{'  ' * depth}]"

    def _write_line(self, content: dict[str, Any]) -> None:
        try:
            if self._lines is None:
                keep_earlier(self.lines)
                self._lines = self.lines.open("w", encoding="ascii")
                self._lines.write(json.dumps(self.header) + "\n")
            self._lines.write(json.dumps(content) + "\n")
            self._lines.flush()
        except OSError as error:
            raise FocalNetError(f"cannot write {self.lines}: {error.strerror}; make room") from error


class FrameList:
    """A list of the results of a video's frames, in a JSON file that is being written.

    Attributes:
        count: frames so far.
        keep_rows: whether the rows of a table are kept, too.
        rows: those of all frames so far, each with its frame and time.
    """

    def __init__(self, file: TextIO, rate: float) -> None:
        self._file, self._rate, self.count = file, rate, 0
        self.keep_rows = False
        self.rows: list[dict[str, Any]] = []

    def add(self, result: Result) -> None:
        """Adds the result of the next frame, with its number from 0 and its time in seconds."""
        place = {"frame": self.count, "time": round(self.count / self._rate, 6)}
        entry = {**place, **result.to_dict()}
        entry.pop("path")
        if self.keep_rows:
            self.rows += [{**place, **row} for row in result.table_rows()]
        self._file.write((",\n" if self.count else "\n") + "    " + json.dumps(entry, ensure_ascii=False))
        self.count += 1


@contextmanager
def frame_list(path: Path, header: Mapping[str, Any]) -> Iterator[FrameList]:
    """Writes the results of a video's frames, one a line, as ``frames`` of a JSON file behind a header.

    The file appears when the video is complete.

    Args:
        path: the file.
        header: other values; ``frame_rate`` is in frames a second.
    """
    before = json.dumps(header, ensure_ascii=False, indent=2).removesuffix("\n}")
    with atomic(path) as part, part.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f'{before},\n  "frames": [')
        frames = FrameList(file, header["frame_rate"])
        yield frames
        file.write(("\n  " if frames.count else "") + "]\n}\n")


def keep_earlier(path: Path) -> None:
    """Renames a file that a run before this one did not get to finish: ``predictions.1.jsonl``, ``.2``, ..."""
    number = 1
    while path.exists():
        target = path.with_suffix(f".{number}{path.suffix}")
        number += 1
        if not target.exists():
            os.replace(path, target)


def refuse_to_overwrite(files: Iterable[Path], names: Iterable[str], folder: Path) -> None:
    """Raises ConfigError where what is written for an image would take the place of an image to predict."""
    inputs = {os.path.realpath(file): file for file in files}
    inside = os.path.realpath(folder)
    for name in names:
        for ending in ENDINGS:
            if overwritten := inputs.get(os.path.join(inside, name + ending)):
                raise ConfigError(f"{overwritten} is an image to predict, and would be written over: another --out")


_LIST = uuid.uuid4().hex  # stands for a list that is written entry by entry


def _json(content: Any) -> str:
    """JSON, indented. Bytes of a file name that are not UTF-8 are to be escaped: Python reads the name from them."""
    return json.dumps(content, ensure_ascii=False, indent=2)


class Ids:
    """COCO ids of images and categories: those of an annotation file.

    Without a file, images count from 1, and categories have the ids that the model was trained with, or count from 1 if
    these are unknown.

    Args:
        network: a detector or segmenter.
        annotations: a COCO file with the same classes; for a panoptic model, a COCO panoptic file.
        files: the images. A whole path in the annotations is matched before the bare file name.

    Raises:
        ConfigError: annotations for a semantic model, whose label maps hold no ids.
        DataError: the file has other classes, is not an annotation file, or does not name an image unambiguously.
    """

    def __init__(self, network: Model[Any, Any], annotations: Path | None, files: Sequence[Path] = ()) -> None:
        #: "detection", "semantic", "instance" or "panoptic".
        self.output: str = network.config.output
        count = network.config.num_classes
        self.file, self.names = annotations, network.class_names or tuple(f"class {i}" for i in range(count))
        self.things = network.config.things if self.output == "panoptic" else None
        self.image_ids: dict[str, int | str] = {}
        from focalnet.weights.labels import ids_of

        known = network.card.category_ids if network.card else ()
        self.category_ids: tuple[int | str, ...] = known or ids_of(self.names) or tuple(range(1, count + 1))
        if annotations is not None:
            self._read(annotations, [path.as_posix() for path in files])

    def _read(self, annotations: Path, files: Sequence[str]) -> None:
        from focalnet.data.formats.coco import read_listing
        from focalnet.data.formats.coco_panoptic import read_panoptic
        from focalnet.data.readers.file_names import match_names

        if self.output == "semantic":
            raise ConfigError("--annotations is for objects and panoptic maps: label maps hold class indices, not ids")
        names: tuple[str, ...] = ()
        if self.output == "panoptic":
            panoptic = read_panoptic(annotations)
            images, names, self.category_ids = panoptic.images, panoptic.class_names, panoptic.category_ids
        else:
            for keep_root in (False, True):  # a model may have been trained with a category that has no objects
                if sorted(names) != sorted(self.names):
                    listing = read_listing(annotations, keep_root=keep_root)
                    images = list(listing.images.values())
                    names, self.category_ids = listing.class_names, listing.category_ids
            if len(set(names)) == len(names) and sorted(names) == sorted(self.names):  # perhaps in another order
                self.category_ids = tuple(self.category_ids[names.index(name)] for name in self.names)
                names = self.names
        if names != self.names:
            raise DataError(f"{annotations}: its categories are not the {len(self.names)} classes of the model")
        matches = match_names([image.file_name for image in images], files, base_names=True)
        exact = match_names([image.file_name for image in images], files).files
        if loose := [(name, file) for name, file in matches.files.items() if name not in exact]:
            name, file = loose[0]
            text = "%s: %d images have its ids by the name of the file alone, e.g. %s that of %s"
            logger.warning(text, annotations, len(loose), file, name)
        ids = {image.file_name: image.image_id for image in images}
        self.image_ids = {file: ids[name] for name, file in matches.files.items()}
        for file in files:
            if file in self.image_ids:
                continue
            for name, candidates in matches.ambiguous.items():
                if file in candidates:
                    raise DataError(f"{annotations}: {name}: {matches.why_ambiguous(name)}")
            raise DataError(f"{annotations}: has no image {file}")

    def image(self, path: Path, number: int) -> int | str:
        """The id of an image, which is the ``number``-th, counted from 1."""
        return number if self.file is None else self.image_ids[path.as_posix()]

    def categories(self) -> list[dict[str, Any]]:
        """The list ``categories`` of a COCO file."""
        categories: list[dict[str, Any]] = [
            {"id": i, "name": name} for i, name in zip(self.category_ids, self.names, strict=True)
        ]
        if self.things is not None:
            for label, category in enumerate(categories):
                category["isthing"] = int(label < self.things)
        return categories
