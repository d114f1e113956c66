"""Reading foreign files without trusting them; writing whole files or none."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import tarfile
import tracemalloc
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save, save_file

from focalnet import weights
from focalnet.card import ModelCard
from focalnet.errors import CheckpointError
from focalnet.weights.checkpoint import HEADER, describe
from focalnet.weights.files import RawFile, read_tensors, write_pickle, write_safetensors
from tests.weights.small import PLAIN, classifier

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.count": torch.tensor([3])}


def same(raw: RawFile) -> bool:
    return raw.tensors.keys() == TENSORS.keys() and all(torch.equal(raw.tensors[k], v) for k, v in TENSORS.items())


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("wrap", "section"),
    [
        (lambda t: t, None),
        (lambda t: {"model": t, "epoch": 3, "max_accuracy": 82.1}, "model"),
        (lambda t: {"state_dict": t, "optimizer": {"state": {}}}, "state_dict"),
        (lambda t: {"model": {"a.weight": torch.zeros(1)}, "model_ema": t}, "model_ema"),
        (lambda t: {"state_dict": {"a.weight": torch.zeros(1)}, "state_dict_ema": t, "arch": "x"}, "state_dict_ema"),
        (lambda t: {"model": {"state_dict": t}}, "model.state_dict"),
        (lambda t: {"model": t, "args": argparse.Namespace(lr=0.1)}, "model"),
        (lambda t: {"state_dict_ema": None, "model": t}, "model"),
    ],
)
def test_pickles_of_any_nesting(tmp_path: Path, legacy: bool, wrap: Any, section: str | None) -> None:
    path = tmp_path / "x.pth"
    torch.save(wrap(TENSORS), path, _use_new_zipfile_serialization=not legacy)

    raw = read_tensors(path)

    assert same(raw)
    assert raw.section == section


def test_safetensors_whatever_the_suffix(tmp_path: Path) -> None:
    for name in ("x.safetensors", "x.bin"):
        save_file(TENSORS, tmp_path / name, metadata={"format": "pt", "who": "me"})
        raw = read_tensors(tmp_path / name)
        assert same(raw)
        assert raw.metadata["who"] == "me"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_as_the_hub_lays_it_out(tmp_path: Path, name: str) -> None:
    (write_safetensors if name.endswith("safetensors") else lambda p, t, _: write_pickle(p, t))(
        tmp_path / name, TENSORS, {}
    )
    assert same(read_tensors(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_becomes_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save({"w": torch.ones(3, dtype=dtype), "n": torch.tensor(1)}, tmp_path / "x.pth")
    raw = read_tensors(tmp_path / "x.pth")
    assert raw.tensors["w"].dtype == torch.float32
    assert raw.tensors["n"].dtype == torch.int64


class Malicious:
    """Unpickling it with the plain unpickler creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain pickle"])
def test_a_pickle_that_carries_code_is_refused_without_running_it(tmp_path: Path, kind: str) -> None:
    path, mark = tmp_path / "x.pth", tmp_path / "was_run"
    content = {"model": TENSORS, "extra": Malicious(mark)}
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")

    with pytest.raises(
        CheckpointError, match=r"x\.pth: (refused because it holds Python code|not a readable checkpoint)"
    ):
        read_tensors(path)

    assert not mark.exists()
    if kind != "plain pickle":  # the file is as dangerous as the test claims
        torch.load(path, weights_only=False)
        assert mark.exists()


def test_the_tar_format_of_old_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in (("sys_info", b""), ("pickle", b""), ("storages", b""), ("tensors", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(CheckpointError, match=r"x\.pth: PyTorch's tar format"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>Public access is not permitted", "not a readable checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "not a readable checkpoint"),
        (pickle.dumps([1, 2, 3]), "not a readable checkpoint|holds no state dict"),
    ],
)
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_other_files_are_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"x\.(pth|safetensors): .*({says}|not a valid safetensors)"):
        read_tensors(tmp_path / name)


def test_a_checkpoint_without_tensors(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": {}}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="holds no state dict, neither at the top level nor under"):
        read_tensors(tmp_path / "x.pth")


def test_a_checkpoint_that_contains_itself(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read_tensors(tmp_path / "x.pth")


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")  # PyTorch says that it takes long
@pytest.mark.parametrize("tensor", [torch.ones(1).expand(10**12), torch.eye(2).to_sparse()], ids=["expanded", "sparse"])
def test_tensors_that_are_not_what_they_claim(tmp_path: Path, tensor: torch.Tensor) -> None:
    torch.save({"w": tensor}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r'x\.pth: "w" (claims|is not a plain dense)'):
        read_tensors(tmp_path / "x.pth")


@pytest.mark.parametrize("path", ["nowhere.pth", "nowhere/x.safetensors", "a\0b.pth"])
def test_a_path_that_cannot_be_read(path: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_tensors(path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors or pytorch_model\.bin"):
        read_tensors(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "x.pth")
    (tmp_path / "x.pth").chmod(0)
    with pytest.raises(CheckpointError, match=r"x\.pth: cannot be read: Permission denied"):
        read_tensors(tmp_path / "x.pth")


WRITERS = pytest.mark.parametrize("write", [write_pickle, lambda p, t: write_safetensors(p, t, {})])


@WRITERS
def test_a_full_disk_is_said_and_nothing_is_left(tmp_path: Path, write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*x: No space left"):
        write(tmp_path / "x", TENSORS)
    assert list(tmp_path.iterdir()) == []


@WRITERS
def test_a_folder_that_does_not_take_files(tmp_path: Path, write: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        write(tmp_path / "file" / "x", TENSORS)


def test_written_files_get_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "ordinary").write_text("")
    write_safetensors(tmp_path / "x.safetensors", TENSORS, {})
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


# --- Several hundred mutated files: only our own error comes out, and it names the file -----------------------------


def _contents() -> dict[str, bytes]:
    model = classifier({**PLAIN, "depths": (1, 1)}, num_classes=2)
    zipped, legacy = io.BytesIO(), io.BytesIO()
    torch.save({"model": model.state_dict(), "epoch": 1}, zipped)
    torch.save({"model": model.state_dict(), "epoch": 1}, legacy, _use_new_zipfile_serialization=False)
    config = model.config
    header = describe(config, ModelCard(name="x", class_names=("a", "b")))
    native = save(model.state_dict(), metadata={"format": "pt", HEADER: header})
    return {"zip.pth": zipped.getvalue(), "legacy.pth": legacy.getvalue(), "native.safetensors": native}


CONTENTS = _contents()
# Half of the changes go to the first bytes, where the structure of a file is and not its numbers.
position = st.one_of(st.integers(0, 4000), st.integers(0, 10**6))
change = st.one_of(
    st.tuples(st.just("replace"), position, st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("insert"), position, st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("delete"), position, st.integers(1, 64)),
    st.tuples(st.just("truncate"), position, st.none()),
)


def mutated(content: bytes, changes: list[tuple[str, int, Any]]) -> bytes:
    for kind, position, what in changes:
        at = position % max(len(content), 1)
        if kind == "replace":
            content = content[:at] + what + content[at + len(what) :]
        elif kind == "insert":
            content = content[:at] + what + content[at:]
        elif kind == "delete":
            content = content[:at] + content[at + what :]
        else:
            content = content[:at]
    return content


@pytest.mark.parametrize("name", CONTENTS)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(change, min_size=1, max_size=4))
def test_a_damaged_file_gives_our_error_or_a_whole_checkpoint(
    tmp_path: Path, name: str, changes: list[tuple[str, int, Any]]
) -> None:
    path = tmp_path / name
    path.write_bytes(mutated(CONTENTS[name], changes))
    try:
        checkpoint = weights.read(path, post_norm=False)
    except CheckpointError as error:
        fine = str(path) in str(error)
    else:  # the change hit a number, or something nobody reads
        report = checkpoint.report()
        fine = not report.missing and not report.mismatched
    assert fine


@pytest.mark.parametrize("objects", [False, True])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), data=st.data())
def test_no_number_changes_silently(
    tmp_path: Path, suffix: str, objects: bool, place: float, bit: int, data: Any
) -> None:
    """One bit of a number: the tensors of safetensors and of records have checksums, which we compare."""
    model, path = classifier(PLAIN), tmp_path / f"x{suffix}"
    if suffix == ".pth":
        torch.save({"model": model.state_dict(), "by": PurePosixPath("x") if objects else None}, path)
    else:
        weights.save(model, path)
    content = bytearray(path.read_bytes())
    numbers = data.draw(st.sampled_from([value for value in model.state_dict().values() if value.numel() > 1]))
    start = content.index(numbers.numpy().tobytes())
    content[start + int(place * numbers.numel() * 4)] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"copy it again"):
        weights.read(path, post_norm=False)


def test_checksums_that_were_left_out(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(classifier(PLAIN).state_dict(), tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert weights.read(tmp_path / "x.pth", post_norm=False).num_classes == 5


def test_files_that_another_program_changed(tmp_path: Path) -> None:
    """It keeps the metadata, of which our digest is a part, or leaves that out."""
    path = weights.save(classifier(PLAIN), tmp_path / "x.safetensors")
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {key: file.get_tensor(key) * 2 for key in file.keys()}, file.metadata()
    save_file(tensors, path, metadata)
    with pytest.raises(CheckpointError, match=r"changed after focalnet wrote it.*focalnet_sha256 out of the metadata"):
        weights.read(path)
    del metadata["focalnet_sha256"]
    save_file(tensors, path, metadata)
    torch.testing.assert_close(weights.read(path).state_dict["head.bias"], tensors["head.bias"])


@pytest.mark.parametrize("key", [3, ("norm", "bias")], ids=["number", "tuple"])
def test_names_that_are_no_text_are_refused(tmp_path: Path, key: Any) -> None:
    torch.save({"model": {"norm.weight": torch.ones(2), key: torch.ones(2)}}, path := tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"odd\.pth: a tensor name has the type \w+, not str"):
        weights.read(path)


def test_the_unchanged_files_are_readable(tmp_path: Path) -> None:
    for name, content in CONTENTS.items():
        (tmp_path / name).write_bytes(content)
        assert weights.read(tmp_path / name, post_norm=False).num_classes == 2


def test_an_index_beyond_all_objects_takes_no_memory(tmp_path: Path) -> None:
    """An unpickler keeps objects by an index in the file; it is ours, since PyTorch refuses the file for its path."""
    stream = pickle.dumps({"model": {"epoch": 3}, "extra": PurePosixPath("x")}, protocol=2)
    assert stream.count(b"q\x00") == 1  # keeps the first object
    path = tmp_path / "x.pth"
    torch.save({}, path, _use_new_zipfile_serialization=False)
    empty = pickle.dumps({}, protocol=2)
    content = path.read_bytes()
    assert content.count(empty) == 1
    path.write_bytes(content.replace(empty, stream.replace(b"q\x00", b"r\x00\x00\x00\x04")))  # as number 2**26
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read_tensors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 << 20
