"""Reading foreign weight files without trusting them, and writing files that are whole or not there at all.

Pickles are read with ``weights_only=True``: a file that asks for anything but tensors and plain values
is refused before any of it runs. Whatever a damaged file does to the parsers, one ``CheckpointError``
that names the file comes out.
"""

from __future__ import annotations

import argparse
import codecs
import hashlib
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from focalnet.errors import CheckpointError
from focalnet.files import atomic

# Keys under which training scripts store the weights; averaged weights are preferred.
SECTIONS = ("state_dict_ema", "model_ema", "ema", "model", "state_dict")
IN_FOLDER = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class RawFile:
    """The content of a weights file, not yet interpreted.

    Args:
        path: the file that was read.
        tensors: under the file's own names; floating-point tensors are float32.
        metadata: the safetensors header's strings.
        section: the key of a training checkpoint that held the tensors, e.g. ``"model"``.
        content: all content of a pickle; empty for safetensors.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    section: str | None
    content: Any = field(default_factory=dict, repr=False)


def read_tensors(path: str | Path) -> RawFile:
    """Reads the tensors of a ``.safetensors`` file or a PyTorch pickle, or of a folder that holds one.

    Raises:
        CheckpointError: the file does not exist, is unreadable or damaged, or holds code or no tensors.
    """
    path = _find(Path(path))
    section: str | None = None
    metadata: dict[str, str] = {}
    content: Any = {}
    if _starts_like_safetensors(path):
        tensors, metadata = _read_safetensors(path)
    else:
        content = _read_pickle(path)
        tensors, section = _section(path, content)
    checked = {key: _checked(path, key, value) for key, value in tensors.items()}
    return RawFile(path, checked, metadata, section, content)


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Writes tensors and metadata atomically; equal contents give equal bytes."""
    whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with atomic(path, CheckpointError) as part:
        try:
            safetensors.torch.save_file(whole, part, metadata={"format": "pt", **metadata})
            _sort_metadata(part)
        except safetensors.SafetensorError as error:
            raise OSError(_reason(error)) from error
    return Path(path)


def _sort_metadata(path: str | Path) -> None:
    """Sorts the metadata in a file's header, since safetensors writes it in random order."""
    with Path(path).open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(ordered) <= size:  # true unless the two libraries escape a character differently
            file.seek(8)
            file.write(ordered.ljust(size))


def write_pickle(
    path: str | Path, tensors: Mapping[str, Tensor], *, section: str = "model", beside: Mapping[str, Any] | None = None
) -> Path:
    """Writes ``{section: tensors, **beside}`` as a PyTorch pickle, atomically."""
    whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with atomic(path, CheckpointError) as part:
        try:
            torch.save({**(beside or {}), section: whole}, part)
        except RuntimeError as error:  # PyTorch's zip writer hides the error of the disk
            raise OSError(str(error)) from error
    return Path(path)


def sha256_of(path: Path) -> str:
    """The hexadecimal sha256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _find(path: Path) -> Path:
    try:
        if path.is_dir():
            inside = [path / name for name in IN_FOLDER if (path / name).is_file()]
            if not inside:
                raise CheckpointError(f"{path}: the folder holds no {' or '.join(IN_FOLDER)}; name the weights file")
            path = inside[0]
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path}: is not a regular file")  # a pipe would be waited for
        with path.open("rb") as file:
            start = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip()
            if not start and not file.read(1):
                raise CheckpointError(f"{path}: the file is empty; download or copy it again")
            if start.startswith(b"<"):
                raise CheckpointError(
                    f"{path}: not a readable checkpoint but a web page; delete it and download the file again"
                )
            if start.startswith(b"version https://git-lfs"):
                raise CheckpointError(
                    f'{path}: not a readable checkpoint but a pointer of Git LFS; "git lfs pull" fetches the file'
                )
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise CheckpointError(f"{path}: cannot be read: {_reason(error)}") from error
    return path


def _starts_like_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    return path.suffix == ".safetensors" or (len(start) == 9 and start[8:] == b"{")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            # Copied, since the file is memory-mapped: overwriting a mapped file kills the process.
            return {key: file.get_tensor(key).clone() for key in file.keys()}, file.metadata() or {}
    except Exception as error:  # the parser's own errors, and those of shapes and types in a damaged header
        raise CheckpointError(f"{path}: not a valid safetensors file ({_reason(error)}); copy it again") from error


def _read_pickle(path: Path) -> Any:
    try:
        # A Namespace of training arguments is data; timm's checkpoints have one.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: {_refusal(str(error))}") from error
    except Exception as error:  # a damaged file can make the unpickler and the zip reader raise nearly anything
        if "legacy .tar" in str(error):
            raise CheckpointError(
                f"{path}: PyTorch's tar format from before 2018 cannot be read safely; load it with an old PyTorch "
                f"you trust and save it again"
            ) from error
        raise CheckpointError(f"{path}: not a readable checkpoint ({_reason(error)}); copy it again") from error


def _refusal(message: str) -> str:
    global_name = re.search(r"(?:GLOBAL|global) ['`\"]?([\w.]+)", message)
    if global_name is None:
        return "not a readable checkpoint (its pickle is damaged, or is not PyTorch's); copy it again"
    return (
        f"refused because it holds Python code or objects ({global_name[1]}) and not only tensors; none of it was run. "
        f"Ask for a safetensors file, or, if you trust it, load it with PyTorch and save its state dict alone"
    )


def _section(path: Path, content: Any) -> tuple[dict[str, Any], str | None]:
    """The state dict within unpickled content, and its key."""
    names: list[str] = []
    for _ in range(3):  # known files nest no deeper than {"checkpoint": {"model": {...}}}
        name = next((n for n in SECTIONS if isinstance(content, Mapping) and _is_filled(content.get(n))), None)
        if name is None:
            break
        content = content[name]
        names.append(name)
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: holds no state dict, neither at the top level nor under {', '.join(SECTIONS)}")
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    for key_type in {type(key) for key in tensors} - {str}:
        raise CheckpointError(f"{path}: a tensor name has the type {key_type.__name__}, not str; copy the file again")
    return tensors, ".".join(names) or None


def _is_filled(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) > 0


def _checked(path: Path, key: str, tensor: Tensor) -> Tensor:
    """A dense tensor on the CPU; floating-point tensors become float32, since half precision only saves storage."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise CheckpointError(f'{path}: "{key}" is not a plain dense tensor ({tensor.layout}, {tensor.device})')
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError(f'{path}: "{key}" claims {tuple(tensor.shape)} values but stores fewer; copy it again')
    return tensor.detach().float() if tensor.is_floating_point() else tensor.detach()


def _reason(error: BaseException) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return text.strip().splitlines()[0][:200] if text.strip() else type(error).__name__
