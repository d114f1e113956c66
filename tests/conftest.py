"""Fixtures of all tests: the folder of data and reference outputs; tests that need it are skipped without it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

SHARED = Path(os.environ.get("FOCALNET_SHARED", Path(__file__).parents[2] / "shared"))

settings.register_profile("any machine", deadline=None)  # examples take longer where the machine is busy
settings.load_profile("any machine")
if not torch.cuda.is_available():  # run GPU kernels in Triton's interpreter; must be set before Triton is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # there are as many processes as cores, so more threads would slow them down
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder that holds ``data/``; skips the test if it does not exist."""
    if not SHARED.is_dir():
        pytest.skip(f"no reference data at {SHARED}; set FOCALNET_SHARED")
    return SHARED


@pytest.fixture(params=["auto", "eager"])
def each_backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """The test runs by the kernels, where they are, and by PyTorch's operations."""
    from focalnet.kernels import backend

    with backend.use(request.param):
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints how many attacks were tried and how many survived, where tests of ``attacks/`` have run."""
    counts = {
        outcome: sum(
            int(value)
            for report in terminalreporter.getreports(outcome)
            for name, value in report.user_properties
            if name == "attacks"
        )
        for outcome in ("passed", "failed")
    }
    if tried := sum(counts.values()):
        terminalreporter.write_line(f"attacks: {tried} tried, {counts['passed']} survived")
