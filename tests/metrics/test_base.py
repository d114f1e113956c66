"""What all evaluators share."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focalnet.card import Preprocessing
from focalnet.metrics.base import Evaluator, Example, Metric, Section
from focalnet.results import Classification
from focalnet.samples import Batch

DATA = SimpleNamespace(class_names=("ant", "bee"), preprocessing=Preprocessing())


class _Evaluator(Evaluator):
    """Keeps the numbers of images by ranks that it is told."""

    def __init__(self, num_examples: int) -> None:
        super().__init__(DATA, examples=True)
        self.num_examples = num_examples  # type: ignore[misc]
        self.made: list[int] = []

    def update(self, results: Sequence[Any], batch: Batch[Any]) -> None:
        super().update(results, batch)
        for number, good, bad in results:

            def make(number: int = number) -> Example:
                self.made.append(number)
                return Example(Classification((), (), ()), str(number))

            self.keep(make, good=good, bad=bad)

    def compute(self) -> list[Metric]:
        return []

    def report(self) -> list[Section]:
        return []


RANK = st.none() | st.integers(0, 5)
NO_BATCH: Batch[Any] = Batch(torch.zeros(0, 3, 4, 4), [], [], [])


@given(st.lists(st.tuples(RANK, RANK), max_size=30), st.integers(1, 4))
@settings(max_examples=100)
def test_the_best_and_the_worst_are_kept_and_no_other_is_made(ranks, images):
    evaluator = _Evaluator(images)
    for number, (good, bad) in enumerate(ranks):
        evaluator.update([(number, good, bad)], NO_BATCH)

    def first(which: int, numbers: range) -> list[int]:
        """By rank; ``sorted`` leaves equal ones in their order."""
        ranked = [number for number in numbers if ranks[number][which] is not None]
        return sorted(ranked, key=lambda number: -ranks[number][which])[:images]

    assert [int(example.title) for example in evaluator.best] == first(0, range(len(ranks)))
    assert [int(example.title) for example in evaluator.worst] == first(1, range(len(ranks)))
    needed = [
        number
        for number in range(len(ranks))
        if any(number in first(which, range(number + 1)) for which in (0, 1))  # as far as one could know by then
    ]
    assert evaluator.made == needed
    assert evaluator.images == len(ranks)
