"""What an exported file says of its network: task, classes, preprocessing, inputs and outputs."""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from focalnet.card import ModelCard, Preprocessing
from focalnet.errors import CheckpointError, ConfigError, InputError

FORMAT = 1  # raised where an older version of this library would read a file wrongly
KEY = "focalnet"  # of the metadata of an ONNX or OpenVINO file
EXTRA_FILE = "focalnet.json"  # within a .pt2 file
FORMATS = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml"}  # names, and suffixes of their files
OUTPUTS = {  # types of results, and what a network must compute for each
    "classification": {"logits"},
    "multilabel": {"logits"},
    "detection": {"boxes", "scores", "labels"},
    "instance": {"boxes", "scores", "labels"},
    "semantic": {"labels"},
    "panoptic": {"ids", "segment_labels", "segment_scores"},
}
_MOST_BYTES = 1 << 26  # of the metadata
LARGEST_DIVISOR = 4096  # every image is padded to a multiple


@dataclass(frozen=True, kw_only=True)
class Header:
    """The metadata of an exported file.

    Args:
        output: type of the results: one of ``OUTPUTS``.
        family: of the network, such as ``"dino"``.
        num_classes: number of classes, without background.
        card: class names, category ids, preprocessing, license and source of the weights.
        inputs: names of the inputs, in order.
        outputs: names of the outputs, in order.
        size_divisor: images are padded to a multiple of this.
        least_side: least height and width in pixels of a padded image.
        thresholds: settings of the postprocessing within the file, such as ``score_threshold``.
        sha256: of the weights: of the names and bytes of all tensors, in the order of their names.
        version: of the library that wrote the file.
        quantization: of an int8 file: how it was calibrated, its metrics in float32 and int8, and the layers that
            stay in float32; None of a file in float32.
    """

    output: str
    family: str
    num_classes: int
    card: ModelCard
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    size_divisor: int
    least_side: int
    thresholds: Mapping[str, float]
    sha256: str
    version: str
    quantization: Mapping[str, Any] | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names by index; ``"class 0"``, ``"class 1"``, ... where they are unknown."""
        return self.card.class_names or tuple(f"class {label}" for label in range(self.num_classes))

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become the network's input."""
        return self.card.preprocessing

    def check_size(self, height: int, width: int) -> None:
        """Raises InputError for padded images that are too small for the file."""
        if min(height, width) < self.least_side:
            raise InputError(
                f"images of {height} x {width} pixels are smaller than the {self.least_side} that the exported "
                "network takes: enlarge them"
            )

    def to_json(self) -> str:
        """The text that is stored in the file."""
        values = dataclasses.asdict(self)
        if self.quantization is None:
            del values["quantization"]  # earlier versions do not know it
        return json.dumps({"format": FORMAT, **values})

    @classmethod
    def from_json(cls, text: str, path: Path) -> Header:
        """The inverse of ``to_json``.

        Raises:
            CheckpointError: the text is damaged, or a later version of this library wrote it.
        """
        try:
            values = json.loads(text)
            if (format := values.pop("format")) != FORMAT:
                later = isinstance(format, int) and format > FORMAT
                way_out = "install a later focalnet, or export it again with this one" if later else "export it again"
                raise CheckpointError(f"{path}: was exported in another format than {FORMAT}; {way_out}")
            card = values.pop("card")
            preprocessing = Preprocessing(**_tuples(card.pop("preprocessing")))
            header = cls(card=ModelCard(preprocessing=preprocessing, **_tuples(card)), **_tuples(values))
            header._check()
        except (AttributeError, ConfigError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: its metadata are damaged ({error}); export it again") from error
        return header

    def _check(self) -> None:
        """Raises ValueError for what no network has: the values of a damaged or edited file can be anything."""
        texts = (self.output, self.family, self.sha256, self.version, *self.inputs + self.outputs)
        sides = (self.num_classes, self.size_divisor, self.least_side)
        if not all(isinstance(text, str) for text in texts) or not all(
            type(side) is int and side >= 1 for side in sides
        ):
            raise ValueError("a field has an invalid value")
        if self.size_divisor > LARGEST_DIVISOR:
            raise ValueError(f"size_divisor={self.size_divisor} must be at most {LARGEST_DIVISOR}")
        if not all(isinstance(part, Mapping) for part in (self.thresholds, self.quantization or {})):
            raise ValueError("thresholds and quantization must be values by name")
        for name, value in self.thresholds.items():
            if not isinstance(value, Real) or not math.isfinite(value):
                raise ValueError(f"thresholds: {name}={value!r} must be a finite number")
        if not OUTPUTS[self.output] <= {*self.outputs}:
            raise ValueError(f"a network for {self.output} has no {', '.join(sorted(OUTPUTS[self.output]))}")
        for given in (self.card.class_names, self.card.category_ids):
            if len(given) not in (0, self.num_classes):
                raise ValueError(f"the network has {self.num_classes} classes, but its card has {len(given)}")


def check_file(path: Path) -> None:
    """Raises CheckpointError for a pipe or device in place of a file, which would be waited for."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise CheckpointError(f"{path}: is not a regular file")


def stored(path: Path) -> str:
    """The metadata of a ``.pt2`` file, as text."""
    check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(f"/{EXTRA_FILE}")]
            if not names:
                raise CheckpointError(f'{path}: has no metadata of ours; write it with "focalnet export"')
            if archive.getinfo(names[0]).file_size > _MOST_BYTES:
                raise CheckpointError(f"{path}: its metadata have more than {_MOST_BYTES} bytes; export it again")
            return archive.read(names[0]).decode()
    except (OSError, RuntimeError, UnicodeDecodeError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"{path}: cannot be read as an exported program: {error}") from error


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that they were."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
