"""A picture with the class of each of its pixels."""

from __future__ import annotations

from PIL import Image

from focalnet.errors import ConfigError
from focalnet.results import SemanticMap
from focalnet.visualize import palettes
from focalnet.visualize.areas import Area, lay_over, percent, sampled, with_legend, write_names
from focalnet.visualize.canvas import original_size, readable_size

SMALLEST, LARGEST = 640, 1600  # pixels of the long side
NAMED = 0.005  # of the picture: classes that cover less are in the legend only


def draw_semantic(result: SemanticMap, *, legend: bool = True, as_frame: bool = False) -> Image.Image:
    """Lays the classes over the picture, each in its own colour; what has no class is dark.

    Args:
        result: with the picture.
        legend: a list of the classes and their shares below the picture. Without, pictures of one size stay of one.
        as_frame: keep the size of the image, and draw no legend: all frames of a video have one size.

    Raises:
        ConfigError: the result carries no picture.
    """
    if result.image is None:
        raise ConfigError(f"nothing to draw on: the map of {result.path or 'this picture'} has no image")
    picture = original_size(result.image) if as_frame else readable_size(result.image, SMALLEST, LARGEST)
    shares = result.shares()
    areas = {label: Area(label, result.name(label), palettes.of_region(label)) for label in shares}
    labels = sampled(result.labels, picture.size)
    drawn = lay_over(picture, labels, list(areas.values()))
    write_names(drawn, labels, [areas[label] for label, share in shares.items() if share >= NAMED])
    if as_frame or not legend:
        return drawn
    return with_legend(drawn, [(a.colour, f"{a.text}  {percent(shares[a.number])}") for a in areas.values()])
