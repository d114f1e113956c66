"""The docs site builds without a warning, offline; ``make docs`` does the same in CI."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.docs.pages import ROOT

pytest.importorskip("mkdocs", reason="the site needs the extra docs")
pytest.importorskip("mkdocstrings", reason="the site needs the extra docs")
pytest.importorskip("nbconvert", reason="the site needs the extra docs")


def build(site: os.PathLike[str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site), *options]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=300)


def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path):
    built = build(tmp_path / "site")
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "site/index.html").read_text()
    assert "fonts.googleapis" not in page
    assert '<script src="http' not in page
    assert "create_model" in (tmp_path / "site/reference/focalnet.html").read_text()
    assert (tmp_path / "site/repository/src/focalnet/nn/modulation.py").is_file()
    notebook = (tmp_path / "site/notebooks/quickstart.html").read_text()
    assert 'href="../explain.html"' in notebook
    assert "quickstart.ipynb" not in page
