"""The section on how often classes occur and are predicted."""

from __future__ import annotations

import numpy as np
import pytest

from focalnet.metrics.balance import balance_section
from focalnet.metrics.base import Bar, Section

NAMES = ("ant", "bee", "cat")


def section(targets: list[int], predicted: list[int], **options: bool) -> Section:
    return balance_section(NAMES, np.array(targets), np.array(predicted), what="objects", **options)


@pytest.mark.parametrize(
    ("targets", "predicted", "warning"),
    [
        ([5, 5, 0], [0, 9, 0], '"bee" is the only class of all that is predicted'),
        ([5, 5, 5], [0, 0, 0], "No objects are predicted: the model has learned nothing yet."),
        ([5, 5, 5], [1, 1, 0], ""),
        ([5, 0, 0], [5, 0, 0], ""),
        ([0, 0, 0], [0, 0, 0], ""),
    ],
)
def test_it_warns_of_a_model_that_knows_one_class(targets: list[int], predicted: list[int], warning: str) -> None:
    found = section(targets, predicted).warning
    assert found.startswith(warning)
    assert bool(found) == bool(warning)


def test_it_tells_of_imbalance_and_lists_the_largest_class_first() -> None:
    found = section([2, 30, 0], [1, 20, 3])
    assert found.title == "Objects by class"
    assert found.text == "The classes are imbalanced: the largest has 15 times as many objects as the smallest."
    absent = "1 of 3 classes are not listed: they have no objects, and are not predicted."
    assert section([4, 30, 0], [1, 20, 0]).text.strip() == absent
    assert section([4, 30, 0], [1, 20, 3]).text == ""
    (table,) = found.tables
    assert table.rows[0] == ("bee", "30", Bar(30 / 32), "20", Bar(20 / 32))
    assert [row[0] for row in table.rows] == ["bee", "ant", "cat"]
    assert section([1, 3, 0], [2, 2, 0], as_shares=True).tables[0].rows[0][1] == "75.00 %"
