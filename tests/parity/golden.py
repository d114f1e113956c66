"""Reads the reference cases: folders of ``NAME.json`` and ``NAME.safetensors``.

``tests/golden`` holds the smallest case of each family, with the README files of the full set, which is not part of the
repository. Where ``FOCALNET_SHARED`` has the full set, that is read instead.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import SHARED

FULL_SET, SUBSET = SHARED / "golden", Path(__file__).parents[1] / "golden"
GOLDEN = FULL_SET if FULL_SET.is_dir() else SUBSET


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


def cases(pattern: str, *, holding: str | None = None) -> Any:
    """Parametrizes a test over every case that matches the pattern below ``GOLDEN``.

    Args:
        pattern: of the JSON files.
        holding: a key of the facts or of the tensors; cases without it are left out.
    """
    chosen = [Case(path) for path in sorted(GOLDEN.glob(pattern))]
    if holding is not None:
        chosen = [case for case in chosen if holding in case.facts or holding in case.facts["tensors"]]
    reason = f"no case matches {GOLDEN}/{pattern}" + (f" and holds {holding}" if holding else "")
    skip = pytest.param(None, marks=pytest.mark.skip(reason=reason))
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.path.stem) for case in chosen] or [skip])


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
