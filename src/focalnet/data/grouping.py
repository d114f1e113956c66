"""Pictures of one kind share a batch: those upright do not pad those lying, and the other way round."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def by_kind(order: npt.NDArray[np.int64], kinds: Sequence[int], batch_size: int) -> npt.NDArray[np.int64]:
    """Rearranges pictures so that each batch is of one kind, but for what is left of all kinds in the end.

    A batch comes where its last picture was; pictures of one kind keep their order. What is left, less than a batch of
    each kind, comes last and together, as in mmdet: left out, a kind with few pictures would never be trained on.

    Args:
        order: indices of pictures, ``(N,)``.
        kinds: by index.
        batch_size: so many in a row are a batch.

    Returns:
        The same indices, ``(N,)``.
    """
    waiting: defaultdict[int, list[int]] = defaultdict(list)
    arranged: list[int] = []
    for index in order.tolist():
        group = waiting[kinds[index]]
        group.append(index)
        if len(group) == batch_size:
            arranged += group
            group.clear()
    left = [index for group in waiting.values() for index in group]
    return np.array(arranged + left, dtype=np.int64)
