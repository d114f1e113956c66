"""A picture with the segment that each of its pixels belongs to."""

from __future__ import annotations

from collections import Counter

from PIL import Image

from focalnet.errors import ConfigError
from focalnet.results import PanopticMap
from focalnet.visualize import palettes
from focalnet.visualize.areas import Area, lay_over, percent, sampled, with_legend, write_names
from focalnet.visualize.canvas import original_size, readable_size

SMALLEST, LARGEST = 640, 1600  # pixels of the long side


def draw_panoptic(result: PanopticMap, *, legend: bool = True, as_frame: bool = False) -> Image.Image:
    """Lays the segments over the picture, those of one class in shades of one colour, named; the rest is dark.

    Args:
        result: with the picture.
        legend: a list of the classes below the picture: how many objects, or which share of it. Without, pictures of
            one size stay of one.
        as_frame: keep the size of the image, and draw no legend: all frames of a video have one size.

    Raises:
        ConfigError: the result carries no picture.
    """
    if result.image is None:
        raise ConfigError(f"nothing to draw on: the map of {result.path or 'this picture'} has no image")
    picture = original_size(result.image) if as_frame else readable_size(result.image, SMALLEST, LARGEST)
    areas = _areas(result)
    ids = sampled(result.ids, picture.size)
    drawn = lay_over(picture, ids, areas)
    write_names(drawn, ids, areas)
    return with_legend(drawn, _legend(result)) if legend and not as_frame else drawn


def _areas(result: PanopticMap) -> list[Area]:
    """The segments, the largest first, so that it is the small ones whose names may find no room."""
    counts = Counter(segment.label for segment in result.segments)
    shades = {label: iter(palettes.shades(palettes.of_region(label), count)) for label, count in counts.items()}
    found = {s.id: Area(s.id, result.name(s.label), next(shades[s.label])) for s in result.segments}
    return [found[s.id] for s in sorted(result.segments, key=lambda s: -s.area)]


def _legend(result: PanopticMap) -> list[tuple[tuple[int, int, int], str]]:
    """Objects are counted, stuff is measured; what covers most comes first."""
    areas: Counter[int] = Counter()
    for segment in result.segments:
        areas[segment.label] += segment.area
    counts = Counter(s.label for s in result.segments if s.is_thing)
    figures = {
        label: f"({counts[label]})" if counts[label] else percent(area / result.ids.numel())
        for label, area in areas.most_common()
    }
    return [(palettes.of_region(label), f"{result.name(label)}  {figure}") for label, figure in figures.items()]
