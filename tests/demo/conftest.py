"""Fixtures of the page's tests: models, uploads, and one server for all tests of a file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import focalnet
from focalnet.demo.explorer import Explorer
from focalnet.demo.uploads import Upload, read_upload

EXAMPLES = Path(focalnet.__file__).parent / "demo" / "examples"


@pytest.fixture(scope="session")
def nano() -> Any:
    return focalnet.load("focalnet_nano.cifar10").eval()


@pytest.fixture
def explorer(nano: Any) -> Explorer:
    return Explorer({"nano": nano})


@pytest.fixture(scope="session")
def cat_and_horse() -> Upload:
    return read_upload({"path": str(EXAMPLES / "cat-and-horse.jpg")}, EXAMPLES)


@pytest.fixture
def sent(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """What the page sends of a file with this content, after it was uploaded to ``tmp_path``."""

    def sent(content: bytes | Image.Image, name: str = "image.png") -> dict[str, str]:
        path = tmp_path / "uploaded"
        if isinstance(content, Image.Image):
            content.save(path, "PNG")
        else:
            path.write_bytes(content)
        return {"path": str(path), "orig_name": name}

    return sent


@dataclass(frozen=True)
class Served:
    """A page in a process of its own, as ``focalnet demo`` starts it.

    Args:
        address: where it is.
        process: that serves it.
        folder: its temporary folder.
    """

    address: str
    process: subprocess.Popen[str]
    folder: Path

    def cpu_seconds(self) -> float:
        """CPU time of the server until now."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        """Memory of the server now."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A page with the model of the package; it must end cleanly and leave no file behind."""
    pytest.importorskip("gradio")
    parent = tmp_path_factory.mktemp("served")
    command = [sys.executable, "-m", "focalnet.cli.main", "demo", "--port", "0"]
    settings = {**os.environ, "TMPDIR": str(parent), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=settings) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("open http://127.0.0.1:"), line
            (folder,) = parent.glob("focalnet-demo-*")
            yield Served(line.split()[1].rstrip("/"), process, folder)
            process.terminate()
            assert process.wait(60) == 0
            assert list(parent.iterdir()) == []
        finally:
            process.kill()
