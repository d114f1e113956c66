"""What every fuzz test shares: values and bytes changed at random by a seed, and what may come of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from focalnet.errors import FocalNetError

#: Of wrong types, huge, negative, not numbers, nested, empty, of no alphabet.
STRANGE: tuple[Any, ...] = (
    *(None, True, -1, 0, 1e308, 2**70, 10**9, 0.5, float("nan"), float("inf"), float("-inf")),
    *("", "x", "\0", "\x1b[2J", "\ud800", "9" * 5000, "x" * 5000, "../" * 99, "/dev/zero", "$", "{}"),
    *([], {}, [[]], [[[[]]]] * 3, {"a": 1}, [1, 2], ["x"], {"a": {"b": []}}, {"": None}),
)


def mutate(value: Any, draw: random.Random) -> Any:
    """Replaces, drops or doubles something anywhere in nested values, as JSON and YAML have them."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        if draw.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: mutate(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.9:
        place = draw.randrange(len(value))
        if draw.random() < 0.1:
            return value[:place] + value[place + 1 :]
        if draw.random() < 0.1:
            return [*value, value[place]]
        return [*value[:place], mutate(value[place], draw), *value[place + 1 :]]
    return draw.choice(STRANGE)


def mutated(value: Any, draw: random.Random) -> Any:
    """After one to four mutations."""
    for _ in range(draw.randint(1, 4)):
        value = mutate(value, draw)
    return value


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Bytes after one to four changes, half of them near the start, where the structure of a file is."""
    for _ in range(draw.randint(1, 4)):
        reach = len(content) if draw.random() < 0.5 else min(len(content), 400)
        at = draw.randrange(reach + 1)
        noise = draw.choice([draw.randbytes(draw.randint(1, 8)), bytes(draw.randint(1, 8)), b"\xff" * 4, b"9" * 5000])
        match draw.randrange(5):
            case 0:
                content = content[:at] + noise + content[at:]
            case 1:
                content = content[:at] + content[at + draw.randint(1, 64) :]
            case 2:
                content = content[:at]
            case _:
                content = content[:at] + noise[:8] + content[at + len(noise[:8]) :]
    return content


def fuzz(attempt: Callable[[random.Random], Any], *, named: str, tries: int = 300) -> int:
    """Attempts something with the seeds 0, 1, ...: it must succeed, or end in one line of ours that names the thing.

    Args:
        attempt: gets a source of random numbers.
        named: what a message must hold.
        tries: how often.

    Returns:
        The tries.
    """
    for seed in range(tries):
        try:
            attempt(random.Random(seed))
        except FocalNetError as error:
            message = str(error)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
        else:
            continue
        if "\n" in message or len(message) > 15_000 or named not in message:
            pytest.fail(f"seed {seed}: {message}")
    return tries
