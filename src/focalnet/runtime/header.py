"""What an exported file says of its network: task, classes, preprocessing, inputs and outputs."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from focalnet.card import ModelCard, Preprocessing
from focalnet.errors import CheckpointError, ConfigError, InputError

FORMAT = 1  # raised where an older version of this library would read a file wrongly
KEY = "focalnet"  # of the metadata of an ONNX or OpenVINO file
EXTRA_FILE = "focalnet.json"  # within a .pt2 file
FORMATS = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml"}  # names, and suffixes of their files
OUTPUTS = ("classification", "multilabel", "detection", "instance", "semantic", "panoptic")


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
            known = header.output in OUTPUTS and all(isinstance(name, str) for name in header.inputs + header.outputs)
            sides = (header.num_classes, header.size_divisor, header.least_side)
            if not known or not all(type(side) is int and side >= 1 for side in sides):
                raise ValueError("a field has an invalid value")
        except (AttributeError, ConfigError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: its metadata are damaged ({error}); export it again") from error
        return header


def stored(path: Path) -> str:
    """The metadata of a ``.pt2`` file, as text."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(f"/{EXTRA_FILE}")]
            if not names:
                raise CheckpointError(f'{path}: has no metadata of ours; write it with "focalnet export"')
            return archive.read(names[0]).decode()
    except (OSError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: cannot be read as an exported program: {error}") from error


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that they were."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
