"""Files are whole or not there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from focalnet.errors import CheckpointError, FocalNetError
from focalnet.files import atomic, atomic_together, write


def test_missing_folders_are_made_and_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    path = write(tmp_path / "a" / "b" / "new.bin", b"content")
    assert path.read_bytes() == b"content"
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_name_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    write(tmp_path / ("x" * 255), b"")


def test_an_interrupted_write_keeps_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path / "x.txt", b"old")

    def write_half() -> None:
        with atomic(path) as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(CheckpointError, match=r"cannot write .*a\.bin: No space left on device; choose another path"):
        write(tmp_path / "a.bin", b"content", CheckpointError)
    assert list(tmp_path.iterdir()) == []


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "folder", tmp_path / "file" / "a", tmp_path / ("x" * 300)):
        with pytest.raises(FocalNetError, match="cannot write"):
            write(path, b"")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_folders_are_never_replaced(tmp_path: Path) -> None:
    """Neither one that is in the place of a file, nor one in the place of a file that belongs to it."""
    kept = write(tmp_path / "m.bin" / "kept.txt", b"kept")
    for write_to in (lambda: atomic_together([tmp_path / "m.xml", tmp_path / "m.bin"]), lambda: atomic(kept.parent)):
        with pytest.raises(FocalNetError, match="Is a directory; choose another path"), write_to():
            pytest.fail("it is refused before anything is written")
    assert kept.read_bytes() == b"kept"
    assert sorted(tmp_path.rglob("*")) == [kept.parent, kept]
