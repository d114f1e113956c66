"""Draws heatmaps over images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from focalnet.errors import ConfigError
from focalnet.files import atomic
from focalnet.visualize import palettes
from focalnet.visualize.canvas import SMALLEST, font, printable, readable_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the original image."""

HEAT_SHARE = 0.65  # opacity of the color over the gray image
LARGEST = 4096  # pixels of the long side of an overlay, which has the resolution of its image up to that
BAR = 14  # height in pixels of a color bar, for an image of 320


class Scale(NamedTuple):
    """What the colors of a heatmap mean: the values at both ends, and the name of matplotlib's color map.

    Maps with negative values have diverging colors with zero in the middle, others a sequence from their lowest to
    their highest value. Both can be read with any color blindness, and in gray.
    """

    low: float
    high: float
    colors: str

    @classmethod
    def of(cls, *maps: NDArray[np.float32]) -> Scale:
        """One scale for all values of some maps."""
        low, high = min(float(m.min()) for m in maps), max(float(m.max()) for m in maps)
        if low < 0:
            most = max(-low, high)
            return cls(-most, most, palettes.SIGNED)
        return cls(low, high, palettes.HEAT)

    def rgb(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Colors ``(..., 3)``, 0 to 255; NaN has that of the low end."""
        span = self.high - self.low
        share = np.clip((np.asarray(values, np.float64) - self.low) / span, 0, 1) if span > 0 else values * 0 + 0.5
        colors = matplotlib.colormaps[self.colors](np.nan_to_num(share))[..., :3] * 255
        return colors.astype(np.float32)


def draw_heatmap(
    image: Image.Image,
    values: NDArray[np.float32],
    region: Box | None = None,
    *,
    scale: Scale | None = None,
    opacity: float = HEAT_SHARE,
) -> Image.Image:
    """Draws a heatmap over an image, at the resolution of the image.

    Args:
        image: very small or large images are drawn in a readable size.
        values: ``(h, w)``, interpolated bilinearly.
        region: the part of the image that the heatmap covers, in pixels of the image; may extend beyond it. The
            rest of the image is gray. Default: the whole image.
        scale: the meaning of the colors; default: that of the heatmap's own values.
        opacity: of the colors over the gray image, 0 to 1.
    """
    drawn = readable_size(image, largest=LARGEST)
    factor = drawn.width / image.width, drawn.height / image.height
    left, top, right, bottom = (0, 0, *image.size) if region is None else region
    box = left * factor[0], top * factor[1], right * factor[0], bottom * factor[1]
    heat = upsample(values, drawn.size, box)
    color = (scale or Scale.of(values)).rgb(heat)
    gray = np.asarray(drawn.convert("L"), dtype=np.float32)[..., None]
    covered = ~np.isnan(heat)[..., None]
    light = 0.8 * gray + 0.2 * 255  # lightened, so that colors stay visible on dark parts
    mixed = np.where(covered, (1 - opacity) * light + opacity * color, 0.4 * gray + 0.6 * 255)
    return Image.fromarray(mixed.astype(np.uint8))


def draw_outline(image: Image.Image, inside: NDArray[np.bool_], box: Box) -> Image.Image:
    """An image with a line around an object, dark outside and light inside, so that it is seen on any color.

    Args:
        image: to draw on, e.g. by ``draw_heatmap``.
        inside: bool ``(h, w)``, the object.
        box: what ``inside`` covers, in pixels of ``image``.
    """
    left, top, right, bottom = (round(edge) for edge in box)
    mask = Image.new("L", image.size)
    extent = max(right - left, 1), max(bottom - top, 1)
    mask.paste(Image.fromarray(inside.astype(np.uint8) * 255).resize(extent, Image.Resampling.NEAREST), (left, top))
    width = 2 * max(max(image.size) // 640, 1)  # pixels of each line
    light, dark = (mask.filter(ImageFilter.MaxFilter(side)) for side in (2 * width + 1, 4 * width + 1))
    drawn = image.copy()
    drawn.paste(palettes.DARK.paper, mask=ImageChops.subtract(dark, light))
    drawn.paste(palettes.LIGHT.paper, mask=ImageChops.subtract(light, mask))
    return drawn


def with_color_bar(
    image: Image.Image, scale: Scale, title: str = "", note: str = "", *, dark: bool = False
) -> Image.Image:
    """An image with a bar below it: the colors, the values at its ends (and zero), a title, and a line about it."""
    theme = palettes.DARK if dark else palettes.LIGHT
    width = max(image.width, SMALLEST)
    unit = max(width // SMALLEST, 1) * BAR
    letters, margin = font(unit, bold=False), unit // 2
    lines = [(title, theme.ink), (note, theme.faint)] if note else [(title, theme.ink)]
    below, line = image.height + margin, round(1.5 * unit)
    top, ends = below + len(lines) * line, (margin, width - margin)
    page = Image.new("RGB", (width, top + 4 * unit - line + margin), theme.paper)
    page.paste(image, ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(page)
    for number, (text, ink) in enumerate(lines):
        heading, written = _fitted(printable(text), unit, width - 2 * margin)
        draw.text((width / 2, below + number * line), written, ink, heading, anchor="ma")
    ramp = scale.rgb(np.linspace(scale.low, scale.high, ends[1] - ends[0], dtype=np.float32)[None])
    page.paste(Image.fromarray(ramp.astype(np.uint8)).resize((ends[1] - ends[0], unit)), (margin, top))
    for at, value, anchor in ((ends[0], scale.low, "la"), (ends[1], scale.high, "ra")):
        draw.text((at, top + unit + 2), f"{value:.3g}", theme.faint, letters, anchor=anchor)
    if scale.low < 0 < scale.high:
        draw.text((width / 2, top + unit + 2), "0", theme.faint, letters, anchor="ma")
    return page


def _fitted(text: str, size: int, width: int) -> tuple[ImageFont.FreeTypeFont, str]:
    """The largest font up to a size in which a text is so wide, at least two thirds of it; then the text is cut."""
    for smaller in range(size, size * 2 // 3 - 1, -1):
        letters = font(smaller, bold=False)
        if letters.getlength(text) <= width:
            return letters, text
    while letters.getlength(text + "…") > width and text:
        text = text[:-1]
    return letters, text.rstrip() + "…"


def save_animation(frames: Sequence[Image.Image], path: str | Path, *, seconds: float = 0.7) -> Path:
    """Writes frames of one size as a GIF or WebP that repeats; an interrupted write leaves an existing file unchanged.

    Args:
        frames: at least one.
        path: ends in ``.gif`` or ``.webp``; missing folders are created.
        seconds: of each frame.

    Raises:
        ConfigError: another suffix.
        FocalNetError: the file cannot be written.
    """
    path = Path(path)
    format = {".gif": "GIF", ".webp": "WEBP"}.get(path.suffix.lower())
    if format is None:
        raise ConfigError(f'cannot save an animation as "{path}": end the name in .gif or .webp')
    first, *others = [_with_palette(frame) for frame in frames] if format == "GIF" else frames
    with atomic(path) as part:
        first.save(part, format=format, save_all=True, append_images=others, duration=round(1000 * seconds), loop=0)
    return path


def _with_palette(frame: Image.Image) -> Image.Image:
    """A frame in 256 colors of its own, dithered: otherwise smooth heatmaps and color bars show steps.

    Colors that are far apart (maximum coverage): the most frequent ones, of the image, leave few for the bar.
    """
    frame = frame.convert("RGB")
    palette = frame.quantize(256, Image.Quantize.MAXCOVERAGE)
    return frame.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def upsample(values: NDArray[np.float32], size: tuple[int, int], box: Box) -> NDArray[np.float32]:
    """Bilinear interpolation of values ``(h, w)`` to ``box`` of a canvas of ``size`` (width, height); NaN around it."""
    left, top, right, bottom = (round(edge) for edge in box)
    extent = max(right - left, 1), max(bottom - top, 1)
    canvas = Image.new("F", size, float("nan"))
    canvas.paste(Image.fromarray(np.asarray(values, np.float32)).resize(extent, Image.Resampling.BILINEAR), (left, top))
    return np.asarray(canvas)
