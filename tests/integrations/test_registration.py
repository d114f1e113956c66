"""``import focalnet`` makes our networks known to timm and transformers, in whatever order they are imported."""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from focalnet import lazy

LOOKS = """
import focalnet, sys
import transformers
transformers.AutoModel, transformers.AutoTokenizer  # as torchmetrics looks at them
assert "focalnet.integrations.transformers_config" in sys.modules
assert "transformers.modeling_utils" not in sys.modules
"""
BEFORE = """
import focalnet, sys
assert "timm" not in sys.modules and "torch" not in sys.modules
from transformers import AutoConfig
config = AutoConfig.for_model("focalnet_dense", options={"embed_dim": 8})
from transformers import AutoBackbone
import timm
"""
AFTER = """
import timm
from transformers import AutoBackbone, AutoConfig
import focalnet
config = AutoConfig.for_model("focalnet_dense", options={"embed_dim": 8})
"""
FOUND = """
assert AutoBackbone.from_config(config).channels == [8, 16, 32, 64]
assert type(timm.create_model("focalnet_nano_fused")) is focalnet.Classifier
assert timm.__spec__.loader is timm.__loader__ and type(timm.__loader__).__module__ != "focalnet.lazy"
"""


@pytest.mark.parametrize("imports", [BEFORE, AFTER], ids=["focalnet first", "focalnet last"])
def test_networks_are_found(imports: str) -> None:
    done = subprocess.run([sys.executable, "-c", imports + FOUND], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "could not be imported" not in done.stderr


def test_who_only_looks_at_transformers_does_not_wait() -> None:
    done = subprocess.run([sys.executable, "-c", LOOKS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of modules that can be imported: ``theirs``, and ``ours``, which needs it to be complete."""
    (tmp_path / "theirs.py").write_text("value = 1")
    (tmp_path / "ours.py").write_text("import theirs; theirs.value += 1")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    yield tmp_path
    for name in ("theirs", "ours"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("first", ["theirs", "follow"])
def test_ours_follows_theirs(first: str, modules: Path) -> None:
    if first == "theirs":
        importlib.import_module("theirs")
    lazy.follow({"theirs": "ours", "not_installed": "nothing"})
    assert ("ours" in sys.modules) == (first == "theirs")
    theirs = importlib.import_module("theirs")
    assert theirs.value == 2
    assert importlib.util.find_spec("not_installed") is None
    importlib.reload(theirs)
    assert theirs.value == 1  # ours has been imported, and is not again


def test_an_error_of_ours_does_not_take_theirs_away(modules: Path, caplog: pytest.LogCaptureFixture) -> None:
    (modules / "ours.py").write_text("raise OSError('broken')")
    lazy.follow({"theirs": "ours"})
    with caplog.at_level(logging.WARNING):
        assert importlib.import_module("theirs").value == 1
    assert caplog.messages == ["ours could not be imported: broken"]


def test_an_error_of_theirs_stays(modules: Path) -> None:
    (modules / "theirs.py").write_text("import missing_package")
    lazy.follow({"theirs": "ours"})
    with pytest.raises(ModuleNotFoundError, match="missing_package"):
        importlib.import_module("theirs")
    assert "ours" not in sys.modules
