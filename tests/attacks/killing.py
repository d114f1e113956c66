"""Processes that are killed at a chosen moment of what they write."""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

#: What is written through, one call a step.
STEPS = ((os, "fsync"), (os, "replace"), (os, "link"), (Path, "touch"), (Path, "unlink"), (Path, "write_bytes"))


#: A process that takes longer shows where it is, and ends.
PATIENCE_S = 240


def server() -> Any:
    """Starts processes quickly: what is slow to import is imported once, in the server they are forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "focalnet.training.engine",
            "focalnet.cli.main",
            "focalnet.inference",
            "sklearn.datasets",
            __name__,
        ]
    )
    return context


class Killer:
    """Counts the moments of writing, before and after each step and halfway through content, and kills at one.

    Args:
        moment: to kill at; None to only count.
    """

    def __init__(self, moment: int | None) -> None:
        self.moment, self.moments = moment, 0
        for owner, name in STEPS:
            setattr(owner, name, self._watched(getattr(owner, name), name))

    def _watched(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._passes()
            if name == "write_bytes":
                path, content = args
                call(path, bytes(content[: len(content) // 2]))
                self._passes()
            result = call(*args, **kwargs)
            self._passes()
            return result

        return watched

    def _passes(self) -> None:
        if self.moments == self.moment:
            os.kill(os.getpid(), signal.SIGKILL)
        self.moments += 1


def work(action: Callable[..., Any], args: tuple[Any, ...], moment: int | None, count: Any, output: Path) -> None:
    """What a process does: ``action``, with a killer; what it says goes to a file."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # loader workers are forked from it, as usual
    with output.open("w", buffering=1) as file:
        sys.stdout = sys.stderr = file
        faulthandler.dump_traceback_later(PATIENCE_S, exit=True, file=file)
        logging.basicConfig(stream=file, level=logging.INFO, format="%(message)s")
        killer = Killer(moment)
        action(*args)
        count.value = killer.moments


def start(context: Any, action: Callable[..., Any], *args: Any, output: Path, moment: int | None = None) -> Any:
    """Starts it in a process of its own."""
    count = context.Value("i", 0)
    process = context.Process(target=work, args=(action, args, moment, count, output))
    process.moments = count
    process.start()
    return process


def run(
    context: Any, action: Callable[..., Any], *args: Any, output: Path, moment: int | None = None
) -> tuple[int, int]:
    """Does it in a process of its own.

    Returns:
        Its exit code, and the number of moments that it passed (0 if it was killed).
    """
    process = start(context, action, *args, output=output, moment=moment)
    process.join()
    return process.exitcode, process.moments.value


def ten_moments(moments: int, seed: int) -> list[int]:
    """Ten of so many, or all."""
    return sorted(random.Random(seed).sample(range(moments), min(10, moments)))
