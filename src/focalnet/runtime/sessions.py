"""Exported files opened by the runtime of their format, ONNX Runtime or OpenVINO, on the CPU."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from focalnet.errors import CheckpointError, require
from focalnet.runtime.header import FORMATS, KEY, Header, check_file, stored

Arrays = Mapping[str, npt.NDArray[Any]]

DIGEST_KEY = "focalnet_sha256"  # of the metadata of a file: the digest of all else, and of an .xml file's .bin file
_DIGEST = re.compile(rf'(?<=<{DIGEST_KEY} value=")[0-9a-f]{{64}}(?=")'.encode())
_ORIGIN = re.compile(r"(Exception from \S+:\d+:|Check '.*?' failed at \S+:\d+:)")  # in messages of OpenVINO


class OnnxSession:
    """The network of an ``.onnx`` file.

    Args:
        path: the file.
        threads: that compute; default: as many as ONNX Runtime chooses.

    Raises:
        CheckpointError: the file cannot be read, or ``focalnet export`` did not write it.
        MissingDependency: onnxruntime is not installed.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        runtime = require("onnxruntime", "export")
        _check_is_file(path)
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors
        # Without VNNI, sums of products of 8-bit integers overflow unless this is set; with it, it changes nothing.
        options.add_session_config_entry("session.x64quantprecision", "1")
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            metadata = self._session.get_modelmeta().custom_metadata_map
        except Exception as error:  # its exceptions share no class
            raise CheckpointError(f"{path}: ONNX Runtime cannot read it: {_one_line(error)}") from error
        if KEY not in metadata:
            raise CheckpointError(f'{path}: has no metadata of ours; write it with "focalnet export"')
        self.header = Header.from_json(metadata[KEY], path)
        _check_names(path, self.header.inputs, [value.name for value in self._session.get_inputs()], "inputs")
        _check_names(path, self.header.outputs, [value.name for value in self._session.get_outputs()], "outputs")
        if DIGEST_KEY in metadata and not _has_digest(path, metadata[DIGEST_KEY]):
            raise CheckpointError(f"{path}: was damaged or changed after it was exported; export the model again")

    def __call__(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """The outputs by name."""
        self.header.check_size(*inputs["images"].shape[2:])
        given = {name: inputs[name] for name in self.header.inputs}
        return dict(zip(self.header.outputs, self._session.run(list(self.header.outputs), given), strict=True))


class OpenVinoSession:
    """The network of an ``.xml`` file and the ``.bin`` file next to it, which has its weights.

    It computes in float32, also where the processor has bfloat16, which OpenVINO would choose.

    Args:
        path: the ``.xml`` file.
        threads: that compute; default: as many as OpenVINO chooses.

    Raises:
        CheckpointError: a file cannot be read, or ``focalnet export`` did not write both of them, as they are.
        MissingDependency: openvino is not installed.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        runtime = require("openvino", "openvino")
        _check_is_file(path)
        weights = path.with_suffix(".bin")
        if not weights.is_file():
            raise CheckpointError(f"{weights}: no such file; it has the weights of {path.name} and belongs next to it")
        core = runtime.Core()
        try:
            graph = core.read_model(path, weights)
            metadata = {key: str(graph.get_rt_info(key).value) for key in (KEY, DIGEST_KEY) if graph.has_rt_info(key)}
        except Exception as error:  # it raises RuntimeError and others
            raise CheckpointError(f"{path}: OpenVINO cannot read it: {_one_line(error)}") from error
        if metadata.keys() != {KEY, DIGEST_KEY}:
            raise CheckpointError(f'{path}: has no metadata of ours; write it with "focalnet export"')
        self.header = Header.from_json(metadata[KEY], path)
        if metadata[DIGEST_KEY] != digest(path):
            raise CheckpointError(
                f"{path}: it or {weights.name} was changed, or they do not belong together; export the model again"
            )
        _check_names(path, self.header.inputs, [value.any_name for value in graph.inputs], "inputs")
        _check_names(path, self.header.outputs, [value.any_name for value in graph.outputs], "outputs")
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            self._request = core.compile_model(graph, "CPU", options).create_infer_request()
        except Exception as error:  # as above
            raise CheckpointError(f"{path}: OpenVINO cannot compute it here: {_one_line(error)}") from error

    def __call__(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """The outputs by name."""
        self.header.check_size(*inputs["images"].shape[2:])
        outputs = self._request.infer({name: inputs[name] for name in self.header.inputs})
        return {name: np.array(outputs[name]) for name in self.header.outputs}  # copies: the next call reuses memory


def open_session(path: Path, format: str | None = None, threads: int | None = None) -> OnnxSession | OpenVinoSession:
    """Opens a file by the runtime of its format.

    Args:
        path: the file.
        format: ``"onnx"`` or ``"openvino"``; default: as the suffix says.
        threads: that compute; default: as many as the runtime chooses.

    Raises:
        CheckpointError: the file cannot be read, or ``focalnet export`` did not write it.
        MissingDependency: the package of the runtime is not installed.
    """
    if path.suffix == FORMATS["torch"] and format is None:
        raise CheckpointError(f"{path}: a program of torch.export needs PyTorch: open it with focalnet.Predictor")
    check_file(path)
    openvino = path.suffix == FORMATS["openvino"] if format is None else format == "openvino"
    return OpenVinoSession(path, threads) if openvino else OnnxSession(path, threads)


def read_header(path: str | Path) -> Header:
    """Reads the metadata of an exported file.

    Raises:
        CheckpointError: the file cannot be read, or ``focalnet export`` did not write it.
        MissingDependency: an ``.onnx`` file needs onnxruntime, an ``.xml`` file openvino.
    """
    path = Path(path)
    return Header.from_json(stored(path), path) if path.suffix == FORMATS["torch"] else open_session(path).header


def file_size(path: Path) -> int:
    """Bytes of an exported file; of an ``.xml`` file, with those of the ``.bin`` file next to it."""
    files = (path, path.with_suffix(".bin")) if path.suffix == FORMATS["openvino"] else (path,)
    return sum(file.stat().st_size for file in files)


def digest(path: Path) -> str:
    """SHA-256 of an ``.xml`` file, but for the digest that it holds itself, and of the ``.bin`` file next to it."""
    total = hashlib.sha256(_DIGEST.sub(b"", path.read_bytes()))
    with path.with_suffix(".bin").open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def store_digest(path: Path) -> None:
    """Writes the digest into an ``.xml`` file, in the place of another one."""
    path.write_bytes(_DIGEST.sub(digest(path).encode(), path.read_bytes()))


def append_digest(path: Path) -> None:
    """Writes the digest of an ``.onnx`` file behind its content, where it is one more entry of the metadata."""
    entry = _onnx_entry(_hash(path, path.stat().st_size))
    with path.open("ab") as file:
        file.write(entry)


def _has_digest(path: Path, expected: str) -> bool:
    """Whether an ``.onnx`` file ends in the digest of what comes before."""
    if not re.fullmatch("[0-9a-f]{64}", expected):
        return False
    end = _onnx_entry(expected)
    size = path.stat().st_size - len(end)
    with path.open("rb") as file:
        file.seek(max(size, 0))
        return file.read() == end and _hash(path, size) == expected


def _hash(path: Path, size: int) -> str:
    """SHA-256 of the first bytes of a file."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (block := file.read(min(size, 1 << 20))):
            total.update(block)
            size -= len(block)
    return total.hexdigest()


def _onnx_entry(digest: str) -> bytes:
    """A digest as the field ``metadata_props`` of ONNX's ``ModelProto``; protobuf takes such fields in any place."""
    key, value = DIGEST_KEY.encode(), digest.encode()
    entry = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([len(value)]) + value
    return b"\x72" + bytes([len(entry)]) + entry


def _check_is_file(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")


def _check_names(path: Path, expected: Sequence[str], actual: Sequence[str], what: str) -> None:
    if sorted(expected) != sorted(actual):
        raise CheckpointError(
            f"{path}: its {what} are {', '.join(actual)}, and {', '.join(expected)} by its metadata: it was changed "
            "after the export; export it again"
        )


def _one_line(error: Exception) -> str:
    return " ".join(_ORIGIN.sub("", str(error)).split())[:300]
