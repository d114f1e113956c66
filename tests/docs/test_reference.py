"""The reference has an entry for every name that a public package exports."""

from __future__ import annotations

import importlib
import re

import pytest

from tests.docs.pages import ROOT

PACKAGES = ("models", "results", "inference", "explanations", "training", "weights")
CONSTANTS = {"CONTROLS", "DEFAULT_METHOD", "METHODS"}
ELSEWHERE = {"Predictor"}  # on the page of focalnet itself


@pytest.mark.parametrize("package", PACKAGES)
def test_a_page_has_what_its_package_exports(package):
    page = (ROOT / f"docs/reference/{package}.md").read_text()
    entries = {entry.rpartition(".")[2] for entry in re.findall(r"^::: (\S+)", page, re.MULTILINE)}
    assert set(importlib.import_module(f"focalnet.{package}").__all__) - CONSTANTS - ELSEWHERE == entries


@pytest.mark.parametrize("page", sorted((ROOT / "docs/reference").glob("*.md")), ids=lambda page: page.name)
def test_entries_exist(page):
    for entry in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE):
        owner, _, name = entry.rpartition(".")
        assert getattr(importlib.import_module(owner), name, None) or importlib.import_module(entry)
