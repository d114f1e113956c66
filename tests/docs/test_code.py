"""Every Python block of README and docs compiles, and names what exists; it runs unless ``skipped.py`` says why not."""

from __future__ import annotations

import ast
import gc
import importlib
import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import focalnet
from tests.docs.pages import PAGES, ROOT, Block, code
from tests.docs.skipped import CODE, PACKAGES, reason_of
from tests.docs.stand_ins import IMAGE, network, patch_published, write_inputs
from tests.integrations.foreign import timm_model

ALL = [block for page in PAGES for block in code(page)]
RUN = {
    page: blocks
    for page in PAGES
    if (blocks := [block for block in code(page) if reason_of(page, block.text, CODE) is None])
}


#: What a reader has: names that code uses and does not define.
GIVEN: dict[str, Callable[[], Any]] = {
    "focalnet": lambda: focalnet,
    "torch": lambda: torch,
    "cv2": lambda: pytest.importorskip("cv2"),
    "model": lambda: network("classifier"),
    "detector": lambda: network("detection"),
    "a_timm_or_transformers_focalnet": lambda: timm_model("srf"),
    "images": lambda: torch.zeros(2, 3, 64, 64),
    "array": lambda: np.zeros((20, 30, 3), np.uint8),
    "many_paths": lambda: ["photos/cat.jpg"],
    "clone": lambda: str(ROOT),
    "classification": lambda: focalnet.Predictor(network("classifier"))(str(IMAGE)),
    "detections": lambda: focalnet.Predictor(network("detection"))(str(IMAGE)),
    "label_map": lambda: focalnet.Predictor(network("segmentation"))(str(IMAGE)),
    "panoptic_map": lambda: focalnet.Predictor(network("panoptic"))(str(IMAGE)),
}


def imported(tree: ast.AST) -> Iterator[tuple[str, Any]]:
    """The names that code imports, with what they are; raises an error where there is no such module or name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.asname or alias.name), importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found = getattr(module, alias.name, None) or importlib.import_module(whole)
                yield (alias.asname or alias.name), found


def resolve(node: ast.expr, names: dict[str, Any]) -> Any:
    """What an expression such as ``focalnet.zoo.load`` is, or None if it does not begin with an imported name."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = resolve(node.value, names)
        return None if owner is None else getattr(owner, node.attr)
    return None


def import_or_skip(page: str) -> None:
    if page in PACKAGES:
        pytest.importorskip(PACKAGES[page])


@pytest.mark.parametrize("block", ALL, ids=lambda b: f"{b.page}:{b.line}")
def test_it_names_what_exists(block: Block) -> None:
    import_or_skip(block.page)
    tree = ast.parse(block.text, f"{block.page}:{block.line}")
    names = {"focalnet": focalnet, **dict(imported(tree))}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            resolve(node, names)
        if isinstance(node, ast.Call) and callable(called := resolve(node.func, names)):
            if not str(getattr(called, "__module__", "")).startswith("focalnet"):
                continue
            keywords = {keyword.arg for keyword in node.keywords if keyword.arg is not None}
            parameters = inspect.signature(called).parameters
            if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
                assert keywords <= set(parameters), f"{block.page}:{block.line}: {ast.unparse(node)}"


@pytest.mark.parametrize("page", RUN)
def test_it_runs(page, tmp_path, monkeypatch):
    import_or_skip(page)
    monkeypatch.chdir(tmp_path)
    patch_published(monkeypatch)
    monkeypatch.setattr(PIL.Image.Image, "show", lambda image: None)  # opens a window
    text = "".join(block.text for block in RUN[page])
    names: dict[str, Any] = {name: make() for name, make in GIVEN.items() if re.search(rf"\b{name}\b", text)}
    for block in RUN[page]:
        write_inputs(block.text, tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # for the reader's sake a file is not closed
            if page.startswith("docs/interop/"):
                warnings.simplefilter("ignore")  # other libraries' advice, such as more workers
            exec(compile(block.text, f"{page}:{block.line}", "exec"), names)
            gc.collect()


@pytest.mark.parametrize(("page", "start", "reason"), CODE)
def test_every_reason_is_needed(page, start, reason):
    assert any(reason_of(b.page, b.text, [(page, start, reason)]) for b in ALL)


def test_code_is_found():
    assert len(ALL) > 20
    assert len(RUN) > 8
