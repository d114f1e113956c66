"""Draws heatmaps over images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from PIL import Image

from focalnet.visualize import palettes
from focalnet.visualize.canvas import readable_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the original image."""

HEAT_SHARE = 0.65  # opacity of the color over the gray image


def draw_heatmap(image: Image.Image, values: NDArray[np.float32], region: Box | None = None) -> Image.Image:
    """Draws a coarse heatmap over an image; its lowest and highest value get the colors at the ends of the color map.

    Args:
        image: very small or large images are drawn in a readable size.
        values: ``(h, w)``.
        region: the part of the image that the heatmap covers, in pixels of the image; may extend beyond it. The
            rest of the image is gray. Default: the whole image.
    """
    drawn = readable_size(image)
    scale = drawn.width / image.width, drawn.height / image.height
    left, top, right, bottom = (0, 0, *image.size) if region is None else region
    box = left * scale[0], top * scale[1], right * scale[0], bottom * scale[1]
    heat = upsample(values, drawn.size, box)
    low, high = float(values.min()), float(values.max())
    unit = np.clip((heat - low) / (high - low), 0, 1) if high > low else heat * 0 + 0.5
    color = matplotlib.colormaps[palettes.HEAT](np.nan_to_num(unit))[..., :3] * 255
    gray = np.asarray(drawn.convert("L"), dtype=np.float32)[..., None]
    covered = ~np.isnan(heat)[..., None]
    light = 0.8 * gray + 0.2 * 255  # lightened, so that colors stay visible on dark parts
    mixed = np.where(covered, (1 - HEAT_SHARE) * light + HEAT_SHARE * color, 0.4 * gray + 0.6 * 255)
    return Image.fromarray(mixed.astype(np.uint8))


def upsample(values: NDArray[np.float32], size: tuple[int, int], box: Box) -> NDArray[np.float32]:
    """Bicubic interpolation of values ``(h, w)`` to ``box`` of a canvas of ``size`` (width, height); NaN around it."""
    left, top, right, bottom = (round(edge) for edge in box)
    extent = max(right - left, 1), max(bottom - top, 1)
    canvas = Image.new("F", size, float("nan"))
    canvas.paste(Image.fromarray(np.asarray(values, np.float32)).resize(extent, Image.Resampling.BICUBIC), (left, top))
    return np.asarray(canvas)
