"""Runs without their report: drawing it takes longer than a toy's training. ``test_report.py`` draws it."""

import pytest

from focalnet.training import finishing
from focalnet.training.run_folder import write


@pytest.fixture(scope="package", autouse=True)
def _no_drawing():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finishing, "write_report", lambda folder, *_: write(folder.report, b"not drawn"))
        yield
