"""Reading foreign weight files without trusting them, and writing files that are whole or not there at all.

Nothing of a pickle runs: tensors and plain values are read, objects beside them are passed over (``pickles.py``), and a
file that names programs or changes of files is refused. Whatever a damaged file does to the parsers, one
``CheckpointError`` that names the file comes out.

Only the weights are read, once: a checkpoint whose optimizer state is twice as large as its weights takes the memory of
its weights. Files are not memory-mapped, since overwriting a mapped file kills the process.

Long because each way in which a file can be damaged is checked where that part of it is read.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import pickle
import re
import tarfile
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from focalnet.errors import CheckpointError
from focalnet.files import atomic
from focalnet.reading import parse_json, read_text
from focalnet.weights import layouts, pickles

# Keys under which training scripts store the weights, the most usual first; averaged weights are preferred.
SECTIONS = (
    *("state_dict_ema", "model_ema", "ema_model", "ema", "ema_state_dict", "params_ema", "model", "state_dict"),
    *("model_state_dict", "module", "net", "network", "weights", "params"),
)
INDEX = ".index.json"
# What folders are read by: of the Hub, of transformers in shards, of our runs, and of DeepSpeed.
IN_FOLDER = (
    *("model.safetensors", "pytorch_model.bin", f"model.safetensors{INDEX}", f"pytorch_model.bin{INDEX}"),
    *("last.ckpt", "mp_rank_00_model_states.pt"),
)
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pkl", ".tar")
EXPORTED = (".onnx", ".pt2", ".xml")  # those of ``runtime.header.FORMATS``, which comes after this package
_DEEPEST = 4  # mappings within mappings
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.\w+)")
_OTHER_FILES = {  # files that are not checkpoints by their first bytes, with the way out
    b"\x1f\x8b": "compressed (gzip); unpack it first",
    b"BZh": "compressed (bzip2); unpack it first",
    b"\xfd7zXZ": "compressed (xz); unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed (zstd); unpack it first",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it and name the weights file",
    b"Rar!": "a RAR archive; unpack it and name the weights file",
    b"GGUF": "a GGUF file, which holds quantized weights; give the weights that it was made from",
    b"\x89HDF": "an HDF5 file, as TensorFlow and Keras write it; give weights of PyTorch",
    b"\x93NUMPY": "a NumPy array; give a .safetensors or .pth file",
}

DIGEST = "focalnet_sha256"  # of the metadata of our safetensors: SHA-256 of the file, with zeros in its place
_LENGTHS = 26  # where the local header of a zip file tells how long its name is
_DTYPES = {  # of safetensors
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class RawFile:
    """The content of a weights file, not yet interpreted.

    Args:
        path: the file that was read.
        tensors: under the file's own names; floating-point tensors are float32.
        metadata: the safetensors header's strings.
        section: the key of a training checkpoint that held the tensors, e.g. ``"model"``.
        content: all content of a pickle, whose tensors may have no values; empty for safetensors.
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
    shards = _shards(path)
    if shards:
        parts = [_read_one(shard) for shard in shards]
        every: dict[str, Tensor] = {}
        for part in parts:
            if twice := every.keys() & part.tensors.keys():
                raise CheckpointError(
                    f'{path}: "{min(twice)}" is in several of its {len(shards)} shards; copy all of them again '
                    "from one place"
                )
            every |= part.tensors
        return RawFile(path, every, {}, None, {})
    return _read_one(path)


def _read_one(path: Path) -> RawFile:
    if _starts_like_safetensors(path):
        tensors, metadata = _read_safetensors(path)
        if DIGEST in metadata and metadata[DIGEST] != _digest(path, metadata[DIGEST]):
            raise CheckpointError(
                f"{path}: was damaged or changed after focalnet wrote it; copy it again, or, if another program was to "
                f"change it, let that leave {DIGEST} out of the metadata"
            )
        return RawFile(path, tensors, metadata, None)
    content, records = _read_pickle(path)
    found, section = _section(path, content)
    for key, tensor in found.items():
        _check(path, key, tensor, devices=("cpu",) if records is None else ("cpu", "meta"))
    if records is None:
        tensors = {key: _as_float32(tensor.detach()) for key, tensor in found.items()}
    else:
        tensors = _read_records(path, found, records)
    return RawFile(path, tensors, {}, section, content)


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Writes tensors and metadata atomically; equal contents give equal bytes."""
    whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with atomic(path, CheckpointError) as part:
        try:
            safetensors.torch.save_file(whole, part, metadata={"format": "pt", **metadata, DIGEST: "0" * 64})
            _sort_metadata(part)
            _store_digest(part)
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


def _store_digest(path: Path) -> None:
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        place = file.read(size).index(f'"{DIGEST}":"'.encode()) + len(f'"{DIGEST}":"')
        file.seek(8 + place)
        file.write(_digest(path, "0" * 64).encode())


def _digest(path: Path, stored: str) -> str:
    """SHA-256 of a safetensors file that has zeros where this digest is stored."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        start = file.read(8)
        header = file.read(int.from_bytes(start, "little"))
        digest.update(start + header.replace(f'"{DIGEST}":"{stored}'.encode(), f'"{DIGEST}":"{"0" * 64}'.encode()))
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


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
            others = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
            if not inside and len(others) > 1:
                names = ", ".join(file.name for file in others[:3]) + ", ..." * (len(others) > 3)
                raise CheckpointError(
                    f"{path}: the folder holds {len(others)} weights files ({names}); name one of them"
                )
            if not inside and not others:
                raise CheckpointError(f"{path}: the folder holds no {' or '.join(IN_FOLDER)}; name the weights file")
            path = (inside or others)[0]
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path}: is not a regular file")  # a pipe would be waited for
        with path.open("rb") as file:
            start = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip()
            if not start and not file.read(1):
                raise CheckpointError(f"{path}: the file is empty; download or copy it again")
            if path.suffix in EXPORTED:
                raise CheckpointError(
                    f"{path}: an exported network can only predict; give the weights that it was exported from"
                )
            if start.startswith(b"<"):
                raise CheckpointError(
                    f"{path}: not a readable checkpoint but a web page; delete it and download the file again"
                )
            if start.startswith(b"version https://git-lfs"):
                raise CheckpointError(
                    f'{path}: not a readable checkpoint but a pointer of Git LFS; "git lfs pull" fetches the file'
                )
            for mark, what in _OTHER_FILES.items():
                if start.startswith(mark):
                    raise CheckpointError(f"{path}: not a readable checkpoint: it is {what}")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise CheckpointError(f"{path}: cannot be read: {_reason(error)}") from error
    return path


def _shards(path: Path) -> list[Path]:
    """All files of weights that were saved in several, of which ``path`` is the index or one; none for a whole file."""
    one_of = _SHARD.fullmatch(path.name)
    if path.name.endswith(INDEX):
        index: Path | None = path
    elif one_of:
        index = path.with_name(f"{one_of[1]}{one_of[4]}{INDEX}")
    else:
        return []
    if index is not None and index.is_file():
        try:
            names = sorted(set(parse_json(read_text(index))["weight_map"].values()))
            if not names or any(not name or Path(name).name != name for name in names):
                raise ValueError("it must name files beside it")
            names = sorted({*names, *(one for name in names for one in _siblings(name))})  # if it was cut short
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index}: is not an index of shards ({_reason(error)}); copy it again") from error
    else:
        names = _siblings(path.name)
    shards = [path.with_name(name) for name in names]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise CheckpointError(
            f"{path}: is one of {len(shards)} shards, of which {missing[0]} is not beside it; copy all into one folder"
        )
    return shards


def _siblings(name: str) -> list[str]:
    """The names of all shards of which a name is one, e.g. ``model-00001-of-00002.bin``; none for another name."""
    one_of = _SHARD.fullmatch(name)
    return [f"{one_of[1]}-{i:05d}-of-{one_of[3]}{one_of[4]}" for i in range(1, int(one_of[3]) + 1)] if one_of else []


def _starts_like_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    return path.suffix == ".safetensors" or (len(start) == 9 and start[8:] == b"{")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as parsed, path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
            tensors = {}
            for key in parsed.keys():
                entry = header[key]
                start, end = entry["data_offsets"]
                if entry["dtype"] in _DTYPES:
                    values = _read_bytes(file, 8 + size + start, end - start).view(_DTYPES[entry["dtype"]])
                    tensors[key] = _as_float32(values.view(entry["shape"]))
                else:
                    tensors[key] = _as_float32(parsed.get_tensor(key).clone())
            return tensors, parsed.metadata() or {}
    except Exception as error:  # the parser's own errors, and those of shapes and types in a damaged header
        raise CheckpointError(f"{path}: not a valid safetensors file ({_reason(error)}); copy it again") from error


def _records(path: Path) -> dict[int, zipfile.ZipInfo] | None:
    """The records of PyTorch's zip format, by where they begin.

    None for an older format, and for files that torch has to read itself.

    Raises:
        CheckpointError: the record of names and shapes has another checksum.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            records = {}
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    return None
                file.seek(entry.header_offset + _LENGTHS)
                lengths = file.read(4)  # of the name and of what follows it, which only the local header tells
                start = entry.header_offset + _LENGTHS + 4 + int.from_bytes(lengths[:2], "little")
                start += int.from_bytes(lengths[2:], "little")
                records[start] = entry
                if entry.filename.endswith(("/byteorder", "/data.pkl")):
                    file.seek(start)
                    content = file.read(entry.file_size)
                    _check_sum(path, entry, content)
                    if entry.filename.endswith("/byteorder") and content != b"little":
                        return None
            return records
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return None


def _check_sum(path: Path, entry: zipfile.ZipInfo, content: Any) -> None:
    """Raises CheckpointError for a record with another checksum, which PyTorch writes, but does not compare.

    One of 0 was left out (``torch.serialization.set_crc32_options``).
    """
    if entry.CRC and zlib.crc32(content) != entry.CRC:
        raise CheckpointError(f"{path}: is damaged: its record {entry.filename} has another checksum; copy it again")


def _check_sums(path: Path, records: Mapping[int, zipfile.ZipInfo]) -> None:
    """``_check_sum`` of all records."""
    if sum(entry.file_size for entry in records.values()) > path.stat().st_size:
        raise CheckpointError(f"{path}: is damaged: its records overlap; copy it again")
    with path.open("rb") as file:
        for start, entry in records.items():
            file.seek(start)
            _check_sum(path, entry, file.read(entry.file_size))


def _read_records(
    path: Path, tensors: Mapping[str, Tensor], records: Mapping[int, zipfile.ZipInfo]
) -> dict[str, Tensor]:
    """The numbers of tensors that were unpickled without; those that share memory in the file do so again.

    Raises:
        CheckpointError: a tensor has no record of its size, or one that is damaged.
    """
    place_of = {key: tensor.untyped_storage()._checkpoint_offset for key, tensor in tensors.items()}
    left = Counter(place_of.values())
    read: dict[int, Tensor] = {}
    filled = {}
    with path.open("rb") as file:
        for key, tensor in tensors.items():
            place, size = place_of[key], tensor.untyped_storage().nbytes()
            if place is None or place not in records or records[place].file_size != size:
                raise CheckpointError(f'{path}: "{key}" has no record of {size} bytes; copy it again')
            try:
                if place not in read:
                    read[place] = _read_bytes(file, place, size)
                    _check_sum(path, records[place], read[place].numpy())
                values = read[place].view(tensor.dtype)
                values = values.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
            except (OSError, RuntimeError) as error:  # RuntimeError: strides that reach beyond the record
                raise CheckpointError(f'{path}: "{key}" cannot be read ({_reason(error)}); copy it again') from error
            filled[key] = _as_float32(values)
            left[place] -= 1
            if not left[place]:
                del read[place]
    return filled


def _read_bytes(file: BinaryIO, start: int, size: int) -> Tensor:
    """A part of a file as bytes ``(size,)``."""
    values = torch.empty(size, dtype=torch.uint8, device="cpu")  # whatever the default device is
    file.seek(start)
    if file.readinto(values.numpy()) != size:  # type: ignore[attr-defined]
        raise OSError("the file ends too early")
    return values


def _read_pickle(path: Path) -> tuple[Any, dict[int, zipfile.ZipInfo] | None]:
    """What was pickled, and the records that hold the numbers of its tensors; None if these have their numbers."""
    records = _records(path)
    if records is not None:
        try:
            with FakeTensorMode():
                return _unpickled(path), records
        except Exception:  # tensors that do not exist without numbers, or a damaged file: torch decides
            _check_sums(path, records)
            records = None
    try:
        return _unpickled(path), records
    except pickles.Hostile as error:
        raise CheckpointError(
            f"{path}: refused because it holds Python code ({error}) and not only weights; none of it was run. Ask for "
            "a safetensors file"
        ) from error
    except Exception as error:  # a damaged file can make the unpickler and the zip reader raise nearly anything
        if "legacy .tar" in str(error) and _is_old_tar(path):
            raise CheckpointError(
                f"{path}: PyTorch's tar format from before 2018 cannot be read safely; load it with an old PyTorch "
                f"you trust and save it again"
            ) from error
        raise CheckpointError(f"{path}: not a readable checkpoint ({_whatever(path, error)})") from error


def _unpickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings():  # of a protocol that it may not support, which is then read below
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # objects beside the tensors, another protocol, or damage
        return pickles.read(path)


def _is_old_tar(path: Path) -> bool:
    """Whether a tar file is one of PyTorch's: torch takes zeros and any archive for one."""
    try:
        with tarfile.open(path) as archive:
            return "storages" in archive.getnames()
    except (OSError, ValueError, tarfile.TarError):
        return True


def _whatever(path: Path, error: Exception) -> str:
    """Describes a file that is not a checkpoint, by its content."""
    with path.open("rb") as file:
        start = file.read(512)
    if start.lstrip()[:1] in (b"{", b"["):
        return "it is JSON, not weights"
    if not start.strip(b"\0"):
        return "it begins with zeros; copy it again"
    if start[257:262] == b"ustar" or (start.startswith(b"PK") and "not in a subdirectory" in str(error)):
        return "it is an archive of other files; unpack it and name the weights file"
    if "TorchScript" in str(error):
        return "it is a TorchScript program; save the state_dict() of its module as safetensors"
    reason = "its first bytes are not a pickle's" if isinstance(error, KeyError) else _reason(error)
    return f"{reason}; copy it again, if it is one of PyTorch's"


def _section(path: Path, content: Any) -> tuple[dict[str, Any], str | None]:
    """The state dict within what was unpickled, and the name it was under."""
    candidates = dict(_state_dicts(content))
    # Weights of a FocalNet are taken before anything else that is made of tensors, e.g. the state of an optimizer.
    of_focalnet = {name: tensors for name, tensors in candidates.items() if layouts.places(tensors)}
    if not of_focalnet:
        of_focalnet = {name: tensors for name, tensors in candidates.items() if set(name.split(".")) <= {"", *SECTIONS}}
    if not of_focalnet:
        raise CheckpointError(f"{path}: holds no state dict, neither at the top level nor under {', '.join(SECTIONS)}")
    ranks = {name: _rank(name, content) for name in of_focalnet}
    first = [name for name, rank in ranks.items() if rank == min(ranks.values())]
    if len(first) > 1:
        raise CheckpointError(
            f"{path}: holds several networks ({', '.join(first)}), and nothing says which is meant; save one alone: "
            f'torch.save(torch.load(path, weights_only=False)["{first[0]}"], "{first[0]}.pth")'
        )
    tensors = of_focalnet[first[0]]
    for key_type in {type(key) for key in tensors} - {str}:
        raise CheckpointError(f"{path}: a tensor name has the type {key_type.__name__}, not str; copy the file again")
    return tensors, first[0] or None


def _state_dicts(content: Any) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Every mapping of names to tensors, and every pickled module, with the dotted name it is under."""
    pending, seen = [("", content, 0)], set()
    while pending:
        name, one, depth = pending.pop(0)
        if not isinstance(one, Mapping) or id(one) in seen:
            continue
        seen.add(id(one))
        if whole := pickles.module_tensors(one):
            yield name, whole
            continue
        tensors = {key: value for key, value in one.items() if isinstance(value, Tensor)}
        if tensors:
            yield name, tensors
        if depth < _DEEPEST:
            inner = [(key, value) for key, value in one.items() if isinstance(key, str)]
            pending += [(f"{name}.{key}".strip("."), value, depth + 1) for key, value in inner]


def _rank(name: str, content: Any) -> tuple[int, ...]:
    """Which of several state dicts is taken, the least first: averaged ones, then by ``SECTIONS``, then any other."""
    swapped = isinstance(content, Mapping) and {"state_dict", "ema_state_dict", "message_hub"} <= content.keys()
    known = [SECTIONS.index(part) if part in SECTIONS else len(SECTIONS) for part in name.split(".") if part]
    average = name == "state_dict" if swapped else layouts.averaged(name)  # mmengine saves the average as state_dict
    return (0 if average else 1, *known[:1])


def _check(path: Path, key: str, tensor: Tensor, devices: Sequence[str]) -> None:
    """Raises CheckpointError for anything but a dense tensor on one of these devices."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type not in devices:
        raise CheckpointError(f'{path}: "{key}" is not a plain dense tensor ({tensor.layout}, {tensor.device})')
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError(f'{path}: "{key}" claims {tuple(tensor.shape)} values but stores fewer; copy it again')


def _as_float32(tensor: Tensor) -> Tensor:
    """Floating point as float32: half precision is only a way of storing, while 8 bits need scales."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() > 1 else tensor


def _reason(error: BaseException) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return text.strip().splitlines()[0][:200] if text.strip() else type(error).__name__
