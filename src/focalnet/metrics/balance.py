"""How often each class occurs and is predicted: a section of reports that warns of a model with one class only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from focalnet.metrics.base import Bar, Section, Table

IMBALANCED = 10  # the largest class has so many times as many images as the smallest


def balance_section(
    names: Sequence[str],
    targets: npt.NDArray[np.int64],
    predicted: npt.NDArray[np.int64],
    *,
    what: str,
    predicted_title: str = "predicted",
    advice: str = "",
    warning: str = "",
    as_shares: bool = False,
) -> Section:
    """A row for each class that occurs or is predicted, the most frequent first.

    Args:
        names: of the classes.
        targets: how often each occurs, ``(N,)``.
        predicted: how often each is predicted, ``(N,)``.
        what: is counted, in the plural, such as ``"images"``.
        predicted_title: heading of the column of predictions.
        advice: sentences that follow the one on imbalance.
        warning: of a model that has learned nothing; by default looked for: only one class is predicted, or none,
            where there are several.
        as_shares: show percent instead of counts, which are too large to be read.
    """
    present, whole = targets[targets > 0], max(int(targets.sum()), int(predicted.sum()), 1)
    text = ""
    if not warning and len(present) > 1 and (predicted > 0).sum() <= 1:
        warning = f"No {what} are {predicted_title}: the model has learned nothing yet."
        if predicted.any():
            only = names[int(predicted.argmax())]
            warning = f'"{only}" is the only class of all that is predicted: the model has learned nothing else.'
    if len(present) and (ratio := int(present.max()) / int(present.min())) >= IMBALANCED:
        text = f"The classes are imbalanced: the largest has {ratio:.0f} times as many {what} as the smallest. {advice}"

    def cells(count: int) -> tuple[str, Bar]:
        return f"{100 * count / whole:.2f} %" if as_shares else str(count), Bar(count / whole)

    absent = int(((targets == 0) & (predicted == 0)).sum())
    if absent and absent < len(names):
        text = (
            text.rstrip()
            + f" {absent} of {len(names)} classes are not listed: they have no {what}, and are not predicted."
        )
    rows: list[tuple[str | Bar, ...]] = [
        (names[i], *cells(int(targets[i])), *cells(int(predicted[i])))
        for i in np.argsort(-targets, kind="stable").tolist()
        if targets[i] or predicted[i]
    ]
    table = Table(rows, ("class", what, "", predicted_title, ""))
    return Section(f"{what.capitalize()} by class", text.strip(), [table], warning=warning)
