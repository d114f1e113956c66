"""What the observers of all dense tasks share."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from focalnet.card import Preprocessing
from focalnet.training.dense_found import DensePredictions


class _Predictions(DensePredictions[int]):
    """Keeps the numbers of images by ranks that it is told."""

    made: list[int]

    def figures(self) -> dict[str, float]:
        return {"figure": 12.3456789}

    def inspect(self, task: Any, found: Any, batch: Any, i: int) -> None:
        number, good, bad = found

        def make() -> int:
            self.made.append(number)
            return number

        self.keep(make, good=good, bad=bad)


class _Trainer:
    """As much of a trainer as the callback asks for."""

    world_size = 1

    class datamodule:
        class_names, preprocessing = ("ant", "bee"), Preprocessing()


RANK = st.none() | st.integers(0, 5)


@given(st.lists(st.tuples(RANK, RANK), max_size=30), st.integers(1, 4))
@settings(deadline=None, max_examples=100)
def test_the_best_and_the_worst_are_kept_and_no_other_is_made(ranks, pictures):
    predictions, trainer = _Predictions(pictures), _Trainer()
    predictions.on_validation_start(trainer, None)
    predictions.made = []
    for number, (good, bad) in enumerate(ranks):
        predictions.on_validation_batch_end(trainer, None, {"found": [(number, good, bad)]}, {}, number)
    predictions.on_validation_end(trainer, None)

    def first(which: int, numbers: range) -> list[int]:
        """By rank; ``sorted`` leaves equal ones in their order."""
        ranked = [number for number in numbers if ranks[number][which] is not None]
        return sorted(ranked, key=lambda number: -ranks[number][which])[:pictures]

    assert predictions.best == first(0, range(len(ranks)))
    assert predictions.worst == first(1, range(len(ranks)))
    needed = [
        number
        for number in range(len(ranks))
        if any(number in first(which, range(number + 1)) for which in (0, 1))  # as far as one could know by then
    ]
    assert predictions.made == needed
    summary = predictions.summary()
    assert (summary["figure"], summary["images"]) == (12.345679, len(ranks))
