"""A predictor that knows no network, so that processes start at once: its result names what it was given."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pyarrow import parquet

from focalnet.errors import FocalNetError, ImageError
from focalnet.inference.manifest.running import Job
from focalnet.inference.manifest.sources import open_manifest
from focalnet.results import Classification

IDENTITY = {"name": "stub", "sha256": "0" * 64}


class Stub:
    """A row whose path holds ``bad`` has an error.

    Args:
        number: of the process.
        seconds: that each row takes.
        processes: folder in which each process leaves a file with its number.
        identity: of the model.
        fails: called with each row before it is predicted.
    """

    output = "classification"

    def __init__(
        self,
        number: int = 0,
        *,
        seconds: float = 0,
        processes: Path | None = None,
        identity: dict[str, str] = IDENTITY,
        fails: Callable[[Any], object] = str,
        **_: Any,
    ) -> None:
        self.seconds, self.identity, self.fails = seconds, identity, fails
        if processes is not None:
            (processes / str(os.getpid())).touch()

    def attempt(self, images: Iterable[Any]) -> Iterator[Classification | FocalNetError]:
        for image in images:
            time.sleep(self.seconds)
            self.fails(image)
            try:
                name = image if isinstance(image, str) else f"{len(image.read())} bytes of {image.name}"
            except ImageError as error:
                yield error
                continue
            yield ImageError(f"{name}: is bad") if "bad" in name else Classification((0,), (1.0,), (name,))


def job(manifest: Path, out: Path, *, rows_per_shard: int, shard_format: str = "jsonl", **options: Any) -> Job:
    """A job of one manifest for stubs with these options; ``workers`` are its processes."""
    opened = open_manifest([manifest], rows_per_shard, listings=out)
    header = {
        "manifest": {"sha256": opened.sha256, "rows": opened.count, "sources": [str(manifest)]},
        "options": {"rows-per-shard": rows_per_shard},
        "shards": opened.shards,
        "folder": os.getcwd(),
    }
    workers, mine = options.pop("workers", 1), options.pop("mine", range(opened.shards))
    return Job(opened, out, shard_format, header, functools.partial(Stub, **options), mine, workers)


def read_rows(out: Path) -> list[dict[str, Any]]:
    """The rows of all shards, in the order of their files."""
    rows: list[dict[str, Any]] = []
    for path in sorted(out.glob("part-*")):
        if path.suffix == ".parquet":
            rows += parquet.read_table(path).to_pylist()
        else:
            rows += map(json.loads, path.read_text("ascii").splitlines())
    return rows
