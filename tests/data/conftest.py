"""Fixtures that write small data sets in every format."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLASSES = ("ant", "bee", "cat")


def jpeg(seed: int, size: int = 12) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_folder(root: Path, per_class: int, classes: tuple[str, ...] = CLASSES, first: int = 0) -> Path:
    """``root/class/000.jpg``, all images different."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            (root / name / f"{number:03}.jpg").write_bytes(jpeg(first + 1000 * label + number))
    return root


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            add(archive, name, content)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """3 classes, with 8 training and 3 validation images each."""
    write_folder(tmp_path / "data/train", 8)
    write_folder(tmp_path / "data/val", 3, first=500)
    return tmp_path / "data"


@pytest.fixture
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the cache of ``datasets`` in the temporary folder of the tests."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")
