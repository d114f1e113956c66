"""Random numbers that depend on a key alone, whatever was drawn before and in whichever process.

timm's RandAugment draws from ``random`` and ``numpy.random``, torchvision's transforms from ``torch``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import get_worker_info


def seed_all(*key: int) -> None:
    """Seeds ``random``, ``numpy.random`` and ``torch`` (CPU) with numbers of 0 or more."""
    for_python, for_numpy, high, low = np.random.SeedSequence(key).generate_state(4).tolist()
    random.seed(for_python)
    np.random.seed(for_numpy)
    torch.default_generator.manual_seed(high << 32 | low)  # torch.manual_seed would seed every GPU too


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Afterwards ``random``, ``numpy.random`` and ``torch`` (CPU) go on as if nothing had been seeded or drawn inside.

    In a loader's worker nobody else draws, and nothing is kept.
    """
    if get_worker_info() is not None:
        yield
        return
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
