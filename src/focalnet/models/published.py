"""The published networks with their costs, from a file: so that they can be listed without PyTorch, at once.

``python -m focalnet.cli.models`` writes the file anew; a test compares it with the networks.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("published.json")


@dataclass(frozen=True, kw_only=True)
class Network:
    """A published network.

    Args:
        tasks: that it can be trained for; the first is the one it was published for.
        params: number of parameters.
        macs: multiply-accumulates for one image of ``image_size``; None for detectors and segmenters.
        image_size: side in pixels of the images it was published for; None if sizes vary.
        num_classes: published number of classes.
        source: where it was published.
    """

    tasks: tuple[str, ...]
    params: int
    macs: int | None
    image_size: int | None
    num_classes: int
    source: str


@functools.cache
def networks() -> Mapping[str, Network]:
    """All networks of this library by name, in the order of the registry."""
    listing = json.loads(FILE.read_text(encoding="utf-8"))
    return {name: Network(**{**fields, "tasks": tuple(fields["tasks"])}) for name, fields in listing.items()}
