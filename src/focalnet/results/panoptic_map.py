"""The segment of each pixel of an image."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focalnet.results.names import class_name

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """One segment of a panoptic map: an object, or all stuff of a kind.

    Args:
        id: its number in the map, from 1.
        label: class index.
        is_thing: an object, and not stuff.
        score: 0 to 1.
        area: pixels.
    """

    id: int
    label: int
    is_thing: bool
    score: float
    area: int


@dataclass(frozen=True)
class PanopticMap:
    """Every pixel of the original image belongs to one segment, or to none.

    Args:
        ids: ``(height, width)``, int32, numbers of segments; 0 where there is none.
        segments: what they are.
        names: of all classes, by index; empty where unknown.
        image: the picture itself, if kept.
        path: the file it came from, if any.
    """

    ids: Tensor
    segments: tuple[Segment, ...]
    names: tuple[str, ...] = ()
    image: Image | None = field(default=None, repr=False, compare=False)
    path: str | None = None

    def name(self, label: int) -> str:
        """Of a class, ``"class 3"`` where it is unknown."""
        return class_name(self.names, label)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``focalnet predict`` writes them to JSON; the map itself is a PNG beside it."""
        segments = [{**asdict(s), "name": self.name(s.label)} for s in self.segments]
        height, width = self.ids.shape
        return {"path": self.path, "height": height, "width": width, "segments": segments}

    def save(self, path: str | Path) -> Path:
        """Writes the picture with its segments laid over it, named; the suffix chooses the format."""
        from focalnet.visualize import draw_panoptic, save_image  # drawing is optional for a noun

        return save_image(draw_panoptic(self), path)
