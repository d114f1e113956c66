"""Exported files as networks, so that everything that predicts with a network also predicts with a file."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from focalnet import zoo
from focalnet.errors import CheckpointError, ConfigError, escaped
from focalnet.files import cut
from focalnet.models import Model
from focalnet.models.base import ModelConfig, Output, check_finite
from focalnet.runtime.header import FORMATS, Header, stored
from focalnet.runtime.results import results
from focalnet.runtime.sessions import open_session
from focalnet.samples import Batch, Size


def load_network(model: str | Path) -> Any:
    """The network of an exported file, or of a name or file that ``zoo.load`` takes."""
    return ExportedNetwork(model) if Path(model).suffix in FORMATS.values() else zoo.load(model)


@dataclass(frozen=True, kw_only=True)
class ExportedConfig(ModelConfig):
    """What prediction must know of an exported network.

    Args:
        kind: type of its results.
        num_classes: number of classes, without background.
        size_divisor: batched images are padded to a multiple of this.
        max_per_image: maximum number of objects reported per image; 0 where there are no objects.
    """

    kind: Output
    num_classes: int
    size_divisor: int
    max_per_image: int

    @property
    def output(self) -> Output:
        return self.kind

    @classmethod
    def from_official(cls, model: Mapping[str, Any]) -> ExportedConfig:
        raise ConfigError("an exported network has no official configuration")

    def build(self) -> Model[Any, Any]:
        raise ConfigError("an exported network cannot be built from its configuration; open its file")


class ExportedNetwork(Model[ExportedConfig, dict[str, Tensor]]):
    """The network of a file that ``focalnet export`` wrote, on the CPU: it predicts, and cannot be trained.

    Args:
        path: an ``.onnx`` file, which needs onnxruntime, an ``.xml`` file, which needs openvino, or a ``.pt2`` file.
        format: ``"onnx"``, ``"openvino"`` or ``"torch"``; default: as the suffix says.

    Raises:
        CheckpointError: the file cannot be read, or ``focalnet export`` did not write it.
        MissingDependency: the package that the file needs is not installed.
    """

    takes_sizes = True

    def __init__(self, path: str | Path, format: str | None = None) -> None:
        super().__init__()
        path = Path(path)
        program = path.suffix == FORMATS["torch"] if format is None else format == "torch"
        self._run = _Program(path) if program else open_session(path, format)
        self.header: Header = self._run.header
        header = self.header
        self.card = header.card
        self.config = ExportedConfig(
            kind=header.output,  # type: ignore[arg-type]  # one of OUTPUTS
            num_classes=header.num_classes,
            size_divisor=header.size_divisor,
            max_per_image=int(header.thresholds.get("max_per_image", 0)),
        )

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of the images that the network takes."""
        return torch.float32

    def to(self, *args: Any, **kwargs: Any) -> ExportedNetwork:
        """Returns itself: it stays on the CPU."""
        return self

    def forward(
        self,
        images_BCHW: Tensor,
        sizes: Sequence[Size] | None = None,
        original_sizes: Sequence[Size] | None = None,
    ) -> Any:
        """The outputs of the file by name; of classifiers the logits."""
        if sizes is None:
            sizes = [(images_BCHW.shape[2], images_BCHW.shape[3])] * len(images_BCHW)
        given = {
            "images": np.ascontiguousarray(images_BCHW.float().cpu().numpy()),
            "sizes": np.array(sizes, np.int64),
            "original_sizes": np.array(sizes if original_sizes is None else original_sizes, np.int64),
        }
        outputs = {name: torch.from_numpy(values) for name, values in self._run(given).items()}
        return outputs["logits"] if self.config.classifies else outputs

    def predict(
        self,
        images_BCHW: Tensor,
        sizes: Sequence[Size] | None = None,
        original_sizes: Sequence[Size] | None = None,
        *,
        must_be_finite: bool = False,
    ) -> list[Any]:
        if sizes is None:
            sizes = [(images_BCHW.shape[2], images_BCHW.shape[3])] * len(images_BCHW)
        originals = sizes if original_sizes is None else original_sizes
        outputs = self(images_BCHW, sizes, originals)
        if must_be_finite:
            check_finite(outputs)
        return self.postprocess(outputs, sizes, originals)

    def postprocess(self, outputs: Any, sizes: Sequence[Size], original_sizes: Sequence[Size]) -> list[Any]:
        if isinstance(outputs, Tensor):
            outputs = {"logits": outputs}
        arrays = {name: values.numpy() for name, values in outputs.items()}
        return [_with_tensors(one) for one in results(self.header, arrays, list(original_sizes))]

    def loss(self, batch: Batch[Any]) -> dict[str, Tensor]:
        raise ConfigError("an exported network cannot be trained: train the model that it was exported from")


#: What a program of ``torch.export`` needs within its archive: no compiled code and no pickles.
_ENTRIES = re.compile(
    r"[^/]+/(data/(weights|constants)/(\w+_config\.json|(weight|tensor)_\d+)|data/sample_inputs/\w+\.pt|models/\w+\.json"
    r"|extra/focalnet\.json|archive_format|archive_version|byteorder|version|\.data/\w+)"
)


def check_archive(path: Path) -> None:
    """Raises CheckpointError if a ``.pt2`` file is damaged or holds anything that ``torch.export.load`` would run."""
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise CheckpointError(f"{path}: is compressed, which focalnet export does not do; export the model again")
        if damaged := archive.testzip():  # PyTorch compares no checksums
            raise CheckpointError(
                f'{path}: was damaged or changed after it was exported ("{escaped(damaged)}"); export the model again'
            )
        names = archive.namelist()
        suspicious = [name for name in names if not _ENTRIES.fullmatch(name) or names.count(name) > 1]
        for name in set(names) - set(suspicious):
            if name.endswith("_config.json"):
                entries = json.loads(archive.read(name))["config"].values()
                pickled = any(
                    one["use_pickle"] or not re.match("(weight|tensor)_", one["path_name"]) for one in entries
                )
                suspicious += [name] if pickled else []
            elif name.endswith(".pt") and archive.getinfo(name).file_size:  # we write no example
                suspicious.append(name)
    if suspicious:
        raise CheckpointError(
            f'{path}: its entry "{escaped(suspicious[0])}" could run code when it is loaded; export the model again'
        )


class _Program:
    """The network of a ``.pt2`` file; it has PyTorch's and torchvision's operations only."""

    def __init__(self, path: Path) -> None:
        self.header = Header.from_json(stored(path), path)
        try:
            check_archive(path)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{path}: PyTorch cannot read it: its archive is damaged ({error})") from error
        log = logging.getLogger("torch.export")  # it prints a traceback of every damaged file
        disabled, log.disabled = log.disabled, True
        try:
            with path.open("rb") as file:
                self._module = torch.export.load(file).module()
        except Exception as error:  # of a damaged file PyTorch raises anything
            reason = " ".join(str(error).split())
            if "warnings above" in reason:  # which are silenced
                reason = "its archive is damaged; export it again"
            raise CheckpointError(f"{path}: PyTorch cannot read it: {cut(reason, 300)}") from error
        finally:
            log.disabled = disabled

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        self.header.check_size(*inputs["images"].shape[2:])
        with torch.no_grad():
            outputs = self._module(*(torch.from_numpy(inputs[name]) for name in self.header.inputs))
        return {name: values.numpy() for name, values in zip(self.header.outputs, outputs, strict=True)}


def _with_tensors(result: Any) -> Any:
    """The result with tensors in place of arrays."""
    arrays = {
        field.name: torch.from_numpy(np.ascontiguousarray(value))
        for field in dataclasses.fields(result)
        if isinstance(value := getattr(result, field.name), np.ndarray)
    }
    return dataclasses.replace(result, **arrays)
