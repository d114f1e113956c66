"""Pictures as files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from focalnet.errors import ConfigError, FocalNetError
from focalnet.visualize import save_image, unique_names


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "webp"])
def test_the_suffix_chooses_the_format(tmp_path: Path, suffix: str) -> None:
    path = save_image(Image.new("RGB", (8, 8), "red"), tmp_path / "new" / f"a.{suffix}")
    with Image.open(path) as image:
        assert image.format == {"png": "PNG", "jpg": "JPEG", "JPEG": "JPEG", "webp": "WEBP"}[suffix]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["a", "a.txt", "a.psd"])
def test_a_suffix_that_is_no_format_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"\.png"):
        save_image(Image.new("RGB", (8, 8)), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_is_a_folder_or_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "folder.png", tmp_path / "file" / "a.png", tmp_path / ("x" * 300 + ".png")):
        with pytest.raises(FocalNetError, match="cannot write"):
            save_image(Image.new("RGB", (8, 8)), path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(FocalNetError, match=r"a\.png.*No space left"):
        save_image(Image.new("RGB", (8, 8)), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_unique_names_in_order() -> None:
    assert unique_names(["x/cat.jpg", "y/cat.png", "dog.png", "cat-2.png", "Dog.jpg"]) == [
        "cat",
        "cat-2",
        "dog",
        "cat-2-2",
        "Dog-2",
    ]


@given(st.lists(st.sampled_from(["a.png", "b/a.jpg", "a-2.png", "A.png", "a-2-2.gif", "b.png"])))
def test_unique_names_never_collide(paths: list[str]) -> None:
    names = [name.casefold() for name in unique_names(paths)]
    assert len(set(names)) == len(names) == len(paths)
