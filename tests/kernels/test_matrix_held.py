"""What was taken from a model before it was made fast changes it as it would the plain one, or there is an error."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from tests.kernels.held import HELD
from tests.kernels.test_matrix import BACKEND, ROLES, distance, needs, output, plain
from torch import Tensor

import focalnet
from focalnet.errors import FrozenError, InputError
from focalnet.kernels.frozen import Frozen

STATES = ("fused", "optimized", "bfloat16", "compiled", "optimized and compiled")
CELLS = [
    (kind, state)
    for kind in ROLES
    for state in (STATES if "ours" in kind else ("fused", "compiled"))  # nothing of other libraries is frozen
]
# Of each way to take one is enough where a compiler is in it.
COMPILED = (
    "a parameter, in place",
    "a parameter, by data",
    "an array",
    "sgd, fused",
    "ema",
    "a layer: weight",
    "a layer: hook",
    "a layer: class",
    "a layer: parametrized",
    "a norm of a parent",
    "a member of a sequence",
    "LoRA: disabled",
)


def in_suite(name: str, kind: str, state: str) -> bool:
    """One of each way is compiled, for one of our models; ``make matrix`` compiles those of other libraries, too."""
    return "compiled" not in state or (name in COMPILED and (kind == "ours" or "FOCALNET_MATRIX_BACKEND" in os.environ))


RUNS = [(name, *cell) for name in HELD for cell in CELLS if in_suite(name, *cell)]


@pytest.mark.parametrize(("name", "kind", "state"), RUNS)
def test_what_was_held(name: str, kind: str, state: str) -> None:
    needs(name)
    truth_of, ours = plain(kind), plain(kind)
    apply_to_truth, apply_to_ours = (HELD[name](model, ROLES[kind]) for model in (truth_of, ours))
    focalnet.accelerate(ours)
    if state in ("optimized", "bfloat16", "optimized and compiled"):
        focalnet.optimize(ours, dtype=torch.bfloat16 if state == "bfloat16" else None)
    runs = ours
    if "compiled" in state:
        torch._dynamo.reset()
        runs = torch.compile(ours, backend=BACKEND)
    exact = output(truth_of)
    if state == "bfloat16":
        truth_of.bfloat16()
    before = output(truth_of)
    tolerance = 1e-4 if state != "bfloat16" else 3 * distance(before, exact) + 1e-2
    assert distance(output(runs), before) < tolerance
    expected, reason = attempt(truth_of, truth_of, apply_to_truth)
    if expected is not None and state != "bfloat16":  # there, what was held before shares no memory with the weights
        # Numbers that PyTorch makes up for weights on meta may be NaN.
        assert not distance(expected, before) <= 2 * tolerance, "a change that changes nothing proves nothing"
    frozen = any(isinstance(module, Frozen) for module in ours.modules())
    found, refusal = attempt(runs, ours, apply_to_ours)
    if found is None:
        # Where weights are on meta, plain modules make up numbers.
        assert frozen or reason is not None or isinstance(refusal, InputError), repr(refusal)
        assert not isinstance(refusal, FrozenError) or "undo()" in str(refusal)
        return
    assert expected is not None, f"numbers where plain modules raise {reason!r}"
    assert distance(found, expected) < tolerance


def attempt(runs: Any, model: Any, change: Any) -> tuple[Tensor | None, Exception | None]:
    """The output after the change, or the error."""
    try:
        change()
        return output(runs), None
    except Exception as error:
        return None, error
