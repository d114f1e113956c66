"""YOLO text files: one object per line, as a class number and a box or polygon in fractions of the image size."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from typing_extensions import Self

from focalnet.data.formats.object_set import (
    ObjectSet,
    Shape,
    WrittenImage,
    polygon_shape,
    same_name,
    split_of,
    text_of,
)
from focalnet.data.images import list_folder
from focalnet.data.readers.collection import SYNONYMS
from focalnet.data.readers.file_names import last_parts
from focalnet.errors import DataError
from focalnet.reading import MOST_BYTES, parse_yaml, read_text, whole_number

#: Where the names of the classes are, unless ``data.yaml`` lists them.
NAME_FILES = ("classes.txt", "obj.names", "labels.txt", "*.names")
_SLACK = 1e-3  # by which rounding may put a coordinate over the edge, as a share of a side
_NO_LABELS = ("classes", "labels", "train", "val", "valid", "test", "readme", "notes")  # text files that are no labels


class YoloSet(ObjectSet):
    """A folder with ``data.yaml``, or with images and text files in ``images`` and ``labels``, or side by side.

    The text file of ``images/train/0.jpg`` is ``labels/train/0.txt``, else ``0.txt`` beside the image. A line is the
    class and a box (center, width and height) or a polygon. An image without a text file has no objects, as in
    Ultralytics' training; how many there are is said.
    """

    format = "YOLO"
    measures = True

    def __init__(self, root: Path, described: Path | None) -> None:
        super().__init__(root)
        self.described = described

    @classmethod
    def find(cls, path: Path) -> Self | None:
        if path.is_file():
            return cls(path.parent, path) if path.suffix in (".yaml", ".yml") and _describes(path) else None
        described = next((file for file in sorted(path.glob("*.y*ml")) if _describes(file)), None)
        if described is not None:
            return cls(path, described)
        found = cls(path, None)
        return found if found._has_labels() else None

    def _has_labels(self) -> bool:
        """Whether there are images with text files that look like labels."""
        if not self._texts:
            return False
        texts = (self._label_file(image) for image in self.image_files)
        try:
            first = next((text for file in texts if file is not None and (text := text_of(file)).strip()), None)
        except DataError:  # no text, so no labels
            return False
        return first is not None and all(_numbers(line) for line in first.split("\n")[:3] if line.strip())

    @cached_property
    def _options(self) -> dict[str, Any]:
        return _read_yaml(self.described) if self.described is not None else {}

    @property
    def splits(self) -> Mapping[str, Path]:
        names = [name for usual in SYNONYMS.values() for name in usual]
        if self.described is not None:
            return {name: self.described for name in names if self._options.get(name)}
        found: dict[str, Path] = {}
        for image in self.image_files:
            for part in PurePosixPath(image).parts[:-1]:
                if split_of(part):
                    found.setdefault(part, self.root / part)
        return found

    def class_list(self) -> tuple[str, ...] | None:
        names = self._options.get("names")
        count = self._options.get("nc")
        if isinstance(names, Mapping | list) and count is not None and whole_number(str(count)) != len(names):
            raise DataError(
                f"{self.described}: nc is {count!r:.60}, and names has {len(names)}: one of them is wrong; correct it"
            )
        if isinstance(names, Mapping):
            by_number = {whole_number(str(number)): self._as_name(name) for number, name in names.items()}
            if set(by_number) != set(range(len(names))) or not names:
                raise DataError(f"{self.described}: names must number the classes from 0 without gaps")
            return tuple(by_number[number] for number in range(len(names)))
        if isinstance(names, list):
            return tuple(map(self._as_name, names))
        for pattern in NAME_FILES:
            for file in sorted(self.root.glob(pattern)):
                return tuple(line.strip() for line in text_of(file).split("\n") if line.strip())
        raise DataError(
            f"{self.root}: its text files number the classes, and nothing names them: list the names in classes.txt, "
            "one a line, or in data.yaml"
        )

    def _as_name(self, name: Any) -> str:
        if isinstance(name, bool) or not isinstance(name, (str, int)):  # 1.10 would be 1.1, and true True
            raise DataError(f'{self.described}: the class name {name!r:.60} is not text; write it in quotes: "..."')
        return str(name)

    def images(self, split: str | None) -> list[WrittenImage]:
        names = self.class_list()
        assert names is not None
        files = self._image_files(split)
        sizes = self.sizes(files)
        labels = {file: self._label_file(file) for file in files}
        if (without := sum(file is None for file in labels.values())) == len(files):
            raise DataError(f"{self.root}: none of its {len(files)} images has a text file of labels")
        if without:
            self.remarks.append(
                f"{without} of {len(files)} images have no text file: they count as images without objects"
            )
        lines: list[list[float]] = []
        found = [self._read(file, labels[file], sizes[file], names, lines) for file in files]
        if keypoints := _unnamed_keypoints(lines):
            raise DataError(
                f"{self.described or self.root}: its lines are boxes with {keypoints[0]} keypoints each, not polygons, "
                f"by their numbers: write kpt_shape: {keypoints} into data.yaml, and the boxes are read"
            )
        return found

    def _image_files(self, split: str | None) -> list[str]:
        if split is None and self.splits:
            return list(dict.fromkeys(file for name in self.splits for file in self._image_files(name)))
        if self.described is not None and split is not None:
            given = self._options.get(split)
            places = given if isinstance(given, list) else [given]
            found = [file for place in places for file in self._place(str(place))]
        else:
            found = [file for file in self.image_files if split in (None, *PurePosixPath(file).parts[:-1])]
        if not found:
            raise DataError(f"{self.described or self.root}: no images of {split} there")
        return found

    def _place(self, place: str) -> list[str]:
        """The images of a folder or list in ``data.yaml``, even if the data set was moved."""
        base = str(self._options.get("path") or "")
        for above in (Path(base) / place, Path(place), Path(last_parts(place, 3)), Path(last_parts(place, 2))):
            path = (self.root / above).resolve() if above.parts else self.root
            if not path.is_relative_to(self.root.resolve()):
                continue
            if path.is_dir():
                below = path.relative_to(self.root.resolve()).as_posix()
                return [file for file in self.image_files if below == "." or file.startswith(f"{below}/")]
            if path.is_file():
                names = [line.strip() for line in read_text(path).split("\n") if line.strip()]
                found = self.matched(names)
                if missing := [name for name, file in found.items() if file is None]:
                    raise DataError(f"{path}: {len(missing)} of its images are not there, e.g. {missing[0]}")
                return [file for file in found.values() if file is not None]
        raise DataError(f"{self.described}: {place}: no such folder or list below {self.root}")

    def _label_file(self, image: str) -> Path | None:
        path = PurePosixPath(image)
        places = [path.with_suffix(".txt")]
        for depth, part in enumerate(path.parts[:-1]):
            if part.casefold() in ("images", "imgs", "jpegimages"):
                other = PurePosixPath(*path.parts[:depth], "labels", *path.parts[depth + 1 :])
                places.insert(0, other.with_suffix(".txt"))
        labels = [place.as_posix() for place in places if place.stem.casefold() not in _NO_LABELS]
        found = next((self._texts[place] for place in labels if place in self._texts), None)
        if found is None and self._spellings[same_name(str(path.with_suffix("")))] == 1:
            found = next((self._folded[name] for name in map(same_name, labels) if name in self._folded), None)
        return found

    @cached_property
    def _texts(self) -> dict[str, Path]:
        """Every text file, by its path below the root."""
        return {path.relative_to(self.root).as_posix(): path for path in list_folder(self.root, (".txt",))}

    @cached_property
    def _folded(self) -> dict[str, Path]:
        """Text files by a path that is the same in any case and Unicode normalization; not where several have it."""
        keys = Counter(map(same_name, self._texts))
        return {same_name(name): path for name, path in self._texts.items() if keys[same_name(name)] == 1}

    @cached_property
    def _spellings(self) -> Counter[str]:
        """How many images have a path, without suffix, that differs in case or Unicode normalization only."""
        return Counter(same_name(str(PurePosixPath(image).with_suffix(""))) for image in self.image_files)

    def _read(
        self,
        file: str,
        labels: Path | None,
        size: tuple[int, int] | str,
        names: tuple[str, ...],
        polygons: list[list[float]],
    ) -> WrittenImage:
        """Reads the labels of an image, and appends the numbers of those that are read as polygons to a list."""
        if isinstance(size, str):
            return WrittenImage(file, problem=size)
        image = WrittenImage(file, size, source=str(labels or ""))
        keypoints = self._options.get("kpt_shape")
        if labels is not None:
            try:
                lines = read_text(labels).split("\n")
            except (OSError, UnicodeDecodeError) as error:
                lines, image.problem = [], f"cannot be read: {error}"
            for number, line in enumerate(lines, start=1):
                shape = _shape(line, size, names, keypoints) if line.strip() else None
                if keypoints is None and (numbers := _numbers(line)) and len(numbers) > 5:
                    polygons.append(numbers[1:])
                if isinstance(shape, str):
                    image.problem = image.problem or f"line {number} {shape}"
                elif shape is not None:
                    image.shapes.append(shape)
        return image


def _unnamed_keypoints(lines: Sequence[Sequence[float]]) -> list[int] | None:
    """``kpt_shape`` of a set that does not give it, if keypoints follow the box on each of its lines; else None.

    Of three numbers the last is 0, 1 or 2, and the points where it is not 0 lie within the box.
    """
    if len({len(line) for line in lines}) != 1:
        return None
    count, rest = divmod(len(lines[0]) - 4, 3)
    if count > 0 and not rest and all(flag in (0, 1, 2) for line in lines for flag in line[6::3]):
        seen = [(line, at) for line in lines for at in range(4, len(line), 3) if line[at + 2]]
        outside = sum(
            any(abs(line[at + i] - line[i]) > line[i + 2] / 2 + _SLACK for i in range(2)) for line, at in seen
        )
        if seen and outside <= 0.05 * len(seen):
            return [count, 3]
    return [pairs, 2] if (pairs := _unnamed_pairs(lines)) else None


def _unnamed_pairs(lines: Sequence[Sequence[float]]) -> int:
    """How many keypoints of two numbers follow the box on each line; 0 for none.

    All lines have equally many numbers; on nearly all of them, all points but those at 0, 0 lie within the box that the
    first four numbers are; and on some, width and height, read as a corner, lie far from all other points.
    """
    if len(lines[0]) % 2 or len(lines[0]) < 8:
        return 0
    outside, far = 0, False
    for x, y, w, h, *rest in lines:
        points = [point for point in zip(rest[::2], rest[1::2], strict=True) if any(point)]
        outside += any(abs(px - x) > w / 2 + _SLACK or abs(py - y) > h / 2 + _SLACK for px, py in points)
        for side, values in ((w, [x, *(px for px, _ in points)]), (h, [y, *(py for _, py in points)])):
            extent = max(values) - min(values)
            far |= not min(values) - extent <= side <= max(values) + extent
    return len(lines[0]) // 2 - 2 if far and outside <= 0.05 * len(lines) else 0


def _shape(line: str, size: tuple[int, int], names: tuple[str, ...], keypoints: Any) -> Shape | str:
    """Parses a line; returns the object, or the problem as text.

    Args:
        line: of a text file of labels.
        size: height and width of the image.
        names: of the classes.
        keypoints: ``kpt_shape`` of the set: how many keypoints follow a box, and of how many numbers each; or None.
    """
    numbers = _numbers(line)
    if numbers is None:
        return f'is not numbers: "{line.strip()[:60]}"'
    label, values = numbers[0], numbers[1:] if keypoints is None else numbers[1:5]
    if not label.is_integer() or not 0 <= label < len(names):
        return f"has class {label:g}, and there are {len(names)}: 0 to {len(names) - 1}"
    if isinstance(keypoints, list) and all(isinstance(one, int) for one in keypoints):
        expected = 4 + math.prod(keypoints)
        if len(numbers) - 1 not in (4, expected):
            return (
                f"has {len(numbers) - 1} numbers behind its class: by kpt_shape {keypoints} it has {expected}, or 4 of "
                "a box alone"
            )
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        return f"has {len(values)} numbers behind its class: a box has 4, a polygon 6 or more, two a corner"
    if min(values) < -_SLACK or max(values) > 1 + _SLACK:
        return f"has a coordinate of {max(values, key=abs):g}: they are fractions of the image size, 0 to 1"
    (height, width), name = size, names[int(label)]
    if len(values) == 4:
        x, y, w, h = values
        return Shape(name, ((x - w / 2) * width, (y - h / 2) * height, w * width, h * height))
    return polygon_shape(name, [(x * width, y * height) for x, y in zip(values[::2], values[1::2], strict=True)])


def _numbers(line: str) -> list[float] | None:
    try:
        values = [float(part) for part in line.split()]
    except ValueError:
        return None
    return values if len(values) > 4 and all(abs(value) < 1e9 for value in values) else None


def _describes(file: Path) -> bool:
    """Whether a YAML file describes a YOLO data set."""
    try:
        content = _read_yaml(file)
    except DataError:
        return False
    return isinstance(content.get("names"), (list, dict)) and any(content.get(key) for key in ("train", "val", "test"))


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = parse_yaml(read_text(file, MOST_BYTES))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    return content if isinstance(content, dict) else {}
