"""The count of attacks: each test says how many it has made, and the summary of the run how many were survived."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture
def attacks(record_property: Callable[[str, object], None]) -> Callable[[int], None]:
    """Called with the number of attacks that a test makes; all of them are survived if the test passes."""
    return lambda tried: record_property("attacks", tried)
