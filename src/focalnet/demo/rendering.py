"""Draws what the page shows: overlays, the picture to download, and pieces of HTML.

Everything that others wrote (names of files, classes and models) is escaped before it becomes HTML.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import matplotlib
import matplotlib.colors
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from focalnet.demo.explorer import Map, Reading, Study
from focalnet.results import Classification, MultiLabel
from focalnet.visualize import palettes
from focalnet.visualize.canvas import font, printable, readable_size
from focalnet.visualize.heatmaps import upsample

SHOWN = (480, 720)  # shortest and longest long side of an overlay, in pixels
SMALL = 168  # long side of an image in the strip of levels
JPEG_QUALITY = 90
COLORS = "viridis"  # matplotlib's color map for values of one sign; readable with any color vision
BELOW_ZERO, ABOVE_ZERO = (33, 102, 172), (230, 97, 1)  # blue and orange: signed values
STOPS = 9  # of a color bar
MARKED = 320  # characters of a message


def shown(image: Image.Image) -> Image.Image:
    """An image in the size in which the page shows it."""
    return readable_size(image, *SHOWN)


def overlay(image: Image.Image, values: Map, opacity: float, *, size: tuple[int, int] = SHOWN) -> Image.Image:
    """Values over an image: the more opaque, the less color the image keeps; zero of signed values is transparent.

    Args:
        image: the image that the values belong to.
        values: what to show.
        opacity: 0 shows the image alone, 1 the values alone.
        size: shortest and longest long side of the drawing.
    """
    base = readable_size(image, *size)
    scale = base.width / image.width, base.height / image.height
    left, top, right, bottom = values.region
    heat = upsample(values.values, base.size, (left * scale[0], top * scale[1], right * scale[0], bottom * scale[1]))
    covered = ~np.isnan(heat)[..., None]
    color = np.asarray(base, dtype=np.float32)
    gray = np.asarray(base.convert("L"), dtype=np.float32)[..., None]
    faded = min(2 * opacity, 1)
    under = (1 - faded) * color + faded * gray
    unit = _unit(np.nan_to_num(heat), values)
    if values.signed:
        ink = np.where(unit[..., None] < 0, _ink(BELOW_ZERO), _ink(ABOVE_ZERO))
        share = opacity * np.abs(unit)[..., None]
    else:
        ink = np.asarray(matplotlib.colormaps[COLORS](unit)[..., :3] * 255, dtype=np.float32)
        share = np.full_like(gray, opacity)
    mixed = np.where(covered, (1 - share) * under + share * ink, 0.4 * gray + 0.6 * 255)
    return Image.fromarray(mixed.round().astype(np.uint8))


def field_image(image: Image.Image, reading: Reading, opacity: float) -> Image.Image:
    """The receptive field of a pixel, with a ring around the pixel; square roots, since most of it is in the middle."""
    field = reading.field
    softer = Map(np.sqrt(field.values), field.region, False, field.title, "", field.blocks)
    drawn = overlay(image, softer, opacity)
    x, y = ((at + 0.5) * drawn.width / image.width for at in (reading.x, reading.y))
    draw = ImageDraw.Draw(drawn)
    for radius, width, color in ((9, 5, "black"), (8, 3, "white")):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=color, width=width)
    return drawn


def low_and_high(values: Map) -> tuple[float, float]:
    """The values at the ends of the colors."""
    if values.signed:
        most = float(np.abs(values.values).max())
        return -most, most
    return float(values.values.min()), float(values.values.max())


def picture(image: Image.Image, title: str, panels: Sequence[tuple[str, str, Map]], opacity: float) -> Image.Image:
    """One picture of all panels, to download: a heading, and for each panel two lines of text and a color bar.

    Args:
        image: what is explained.
        title: the heading.
        panels: heading, second line and values of each.
        opacity: of the values.
    """
    drawings = [overlay(image, values, opacity) for _, _, values in panels]
    gap, top, above, below = 24, 62, 54, 52
    width = sum(d.width for d in drawings) + gap * (len(drawings) + 1)
    canvas = Image.new("RGB", (width, top + above + drawings[0].height + below), palettes.PAPER)
    draw = ImageDraw.Draw(canvas)
    _write(draw, (gap, 22), title, 20, width - 2 * gap, bold=True)
    x = gap
    for drawing, (heading, line, values) in zip(drawings, panels, strict=True):
        _write(draw, (x, top), heading, 16, drawing.width, bold=True)
        _write(draw, (x, top + 24), line, 13, drawing.width, color=palettes.FAINT)
        canvas.paste(drawing, (x, top + above))
        y = top + above + drawing.height + 8
        bar = np.asarray([palettes.rgb(stop) for stop in _stops(values, drawing.width)], dtype=np.uint8)
        canvas.paste(Image.fromarray(np.repeat(bar[None], 10, axis=0)), (x, y))
        low, high = map(_number, low_and_high(values))
        _write(draw, (x, y + 15), low, 13, drawing.width)
        _write(draw, (x + drawing.width - int(font(13, bold=False).getlength(high)), y + 15), high, 13, drawing.width)
        x += drawing.width + gap
    return canvas


def message(text: str, *, kind: str = "note") -> str:
    """A line for the visitor; ``kind`` is ``"note"`` or ``"error"``."""
    if not text:
        return ""
    role = "alert" if kind == "error" else "status"
    short = text if len(text) <= MARKED else f"{text[: MARKED - 1]}…"
    return f'<p class="fn-message fn-{kind}" role="{role}">{escape(printable(short, MARKED))}</p>'


def prediction(study: Study, title: str = "") -> str:
    """What a model predicts: classes with bars, or a drawing with a summary; below a title, if there is one."""
    result = study.result
    heading = f'<p class="fn-title">{escape(printable(title))}</p>' if title else ""
    if result is None:
        return heading + message("this backbone predicts nothing; choose modulator, gates or gate")
    if isinstance(result, MultiLabel) and not len(result):
        return heading + message("no class has a score of 50 % or more in this image")
    if isinstance(result, Classification | MultiLabel):
        rows = zip(result.names, result.scores, strict=True)
        return f'{heading}<div class="fn-bars">{"".join(_bar(name, s, f"{s:.1%}") for name, s in rows)}</div>'
    summary = [printable(line.strip()) for line in result.summary()]
    lines = "".join(f"<li>{escape(line)}</li>" for line in summary[:12])
    return f'{heading}{_img(shown(result.draw()), "; ".join(summary[:3]))}<ul class="fn-summary">{lines}</ul>'


def caption(heading: str, line: str, values: Map) -> str:
    """What a panel shows, and its colors."""
    low, high = map(_number, low_and_high(values))
    colors = ", ".join(_stops(values, STOPS))
    return (
        f'<div class="fn-caption"><strong>{escape(printable(heading))}</strong>'
        f"<span>{escape(printable(line))}</span>"
        f'<div class="fn-scale"><span>{low}</span><i style="background:linear-gradient(90deg,{colors})"></i>'
        f"<span>{high}</span></div></div>"
    )


def strip(image: Image.Image, title: str, maps: Iterable[Map], opacity: float) -> str:
    """A row of small overlays, one for each level."""
    figures = []
    for values in maps:
        low, high = map(_number, low_and_high(values))
        drawing = overlay(image, values, opacity, size=(SMALL, SMALL))
        figures.append(
            f"<figure>{_img(drawing, f'{values.title}: {low} to {high}')}<figcaption><strong>{escape(values.title)}"
            f"</strong><span>{low} … {high}</span></figcaption></figure>"
        )
    heading = f'<h3 class="fn-heading">{escape(printable(title))}</h3>'
    return f'{heading}<div class="fn-strip">{"".join(figures)}</div>'


def reading_table(reading: Reading, value: str) -> str:
    """The gates of a pixel as bars from zero to both sides, and where its cell is."""
    most = max((abs(gate) for gate in reading.gates.values()), default=0) or 1.0
    rows = "".join(_signed_bar(name, gate, most) for name, gate in reading.gates.items())
    height, width = reading.size
    facts = [
        ("pixel", f"x {reading.x}, y {reading.y}"),
        ("block", reading.block),
        ("cell", f"row {reading.row}, column {reading.column} of {height} x {width}"),
        ("modulator", f"{_number(reading.modulator)} (L2 norm)"),
    ]
    if reading.value is not None:
        facts.append((value, _number(reading.value)))
    listing = "".join(f"<dt>{escape(name)}</dt><dd>{escape(printable(fact))}</dd>" for name, fact in facts)
    note = (
        "The image shows the receptive field of this cell: how much each pixel moves the output of the block there. "
        "Its colors follow the square roots of the values."
    )
    return (
        f'<dl class="fn-facts">{listing}</dl><div class="fn-bars" aria-label="gates">{rows}</div>'
        f'<p class="fn-hint">{note}</p>'
    )


def zoo_table(listing: Sequence[dict[str, Any]]) -> str:
    """Architectures and their checkpoints, as ``focalnet models`` lists them."""
    rows = []
    for model in listing:
        cost = f"{model['params'] / 1e6:.1f} M"
        macs = f"{model['macs'] / 1e9:.2f} G at {model['image_size']} px" if model["macs"] else ""
        rows.append(
            f'<tr class="fn-model"><th scope="row">{escape(model["name"])}</th><td>{cost}</td>'
            f"<td>{macs}</td><td></td></tr>"
        )
        for weights in model["weights"]:
            metrics = ", ".join(f"{name} {value:g}" for name, value in weights["metrics"].items())
            rows.append(
                f'<tr><td class="fn-weights">{escape(weights["name"])}</td><td>{escape(weights["licence"])}</td>'
                f"<td>{escape(metrics)}</td><td>{escape(weights['file'])}</td></tr>"
            )
    return (
        '<div class="fn-table" tabindex="0" role="region" aria-label="models"><table><thead><tr>'
        '<th scope="col">architecture, checkpoints</th><th scope="col">parameters, license</th>'
        '<th scope="col">MACs, published metrics</th><th scope="col">weights</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _unit(heat: NDArray[np.float32], values: Map) -> NDArray[np.float32]:
    """Values between the ends of the colors: 0 to 1, or -1 to 1 if they are signed."""
    low, high = low_and_high(values)
    if high <= low:
        return np.zeros_like(heat) if values.signed else np.full_like(heat, 0.5)
    unit = heat / high if values.signed else (heat - low) / (high - low)
    return np.asarray(unit.clip(-1, 1), dtype=np.float32)


def _ink(color: palettes.RGB) -> NDArray[np.float32]:
    return np.array(color, dtype=np.float32)


def _stops(values: Map, count: int) -> list[str]:
    """Colors from the lowest to the highest value."""
    if not values.signed:
        return [matplotlib.colors.to_hex(color) for color in matplotlib.colormaps[COLORS](np.linspace(0, 1, count))]
    colors = []
    for unit in np.linspace(-1, 1, count):
        ink = BELOW_ZERO if unit < 0 else ABOVE_ZERO
        mixed = [round(255 - abs(unit) * (255 - channel)) for channel in ink]
        colors.append("#{:02x}{:02x}{:02x}".format(*mixed))
    return colors


def _bar(name: str, share: float, text: str) -> str:
    return (
        f'<div class="fn-bar"><span class="fn-name">{escape(printable(name))}</span>'
        f'<span class="fn-track"><i style="width:{100 * share:.1f}%"></i></span>'
        f'<span class="fn-value">{text}</span></div>'
    )


def _signed_bar(name: str, value: float, most: float) -> str:
    """A bar from the middle, to the left if the value is negative."""
    share = 50 * abs(value) / most
    side, kind = (f"left:{50 - share:.1f}%", "fn-below") if value < 0 else ("left:50%", "fn-above")
    return (
        f'<div class="fn-bar"><span class="fn-name">{escape(name)}</span><span class="fn-track fn-signed">'
        f'<i class="{kind}" style="{side};width:{share:.1f}%"></i></span>'
        f'<span class="fn-value">{_number(value)}</span></div>'
    )


def _number(value: float) -> str:
    """Three significant digits with a proper minus sign."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.3g}".replace("-", "−")  # noqa: RUF001 (a minus sign)


def _img(image: Image.Image, alternative: str) -> str:
    """An image within the HTML, so that it needs no file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    code = base64.b64encode(buffer.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="data:image/jpeg;base64,{code}" {size} alt="{escape(printable(alternative), quote=True)}">'


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    size: int,
    width: int,
    *,
    color: str = palettes.INK,
    bold: bool = False,
) -> None:
    """One line of text, cut where it is wider than ``width``."""
    letters, text = font(size, bold=bold), printable(text)
    while text and letters.getlength(text) > width:
        text = f"{text[:-2]}…" if len(text) > 2 else ""
    draw.text(at, text, color, letters)
