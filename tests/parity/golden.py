"""Reading the reference cases: a folder of ``NAME.json`` and ``NAME.safetensors`` (see its README)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import SHARED


@dataclass(frozen=True)
class Case:
    """One reference case: ``facts`` are its JSON, ``tensors`` its safetensors."""

    path: Path

    @property
    def facts(self) -> dict[str, Any]:
        return json.loads(self.path.read_text())

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return load_file(self.path.with_suffix(".safetensors"))


def cases(pattern: str) -> Any:
    """Parametrises a test over every case that matches the pattern below ``golden/``."""
    paths = sorted((SHARED / "golden").glob(pattern))
    skip = pytest.param(None, marks=pytest.mark.skip(reason=f"no case matches {SHARED}/golden/{pattern}"))
    return pytest.mark.parametrize("case", [pytest.param(Case(p), id=p.stem) for p in paths] or [skip])


def weights(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The official state dict stored in a case."""
    return {k.removeprefix("state_dict."): v for k, v in tensors.items() if k.startswith("state_dict.")}


def assert_forward(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """The tolerance the reference README suggests for float32 values."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5 * float(expected.abs().max()))


def assert_gradient(actual: torch.Tensor | None, expected: torch.Tensor) -> None:
    """The tolerance the reference README suggests for float32 gradients."""
    assert actual is not None
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
