"""Masks of any file as one number for each pixel: gray, with a palette, in colors, as floats, or arrays of NumPy."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from focalnet.data import images as decoding
from focalnet.errors import ImageError
from focalnet.samples import IGNORED

Color: TypeAlias = tuple[int, int, int]
#: Number by color, red, green and blue from 0 to 255.
Palette: TypeAlias = Mapping[Color, int]

NPY = ".npy"
_NPY_START = b"\x93NUMPY"
_SHOWN = 3  # colors or numbers that a message shows


def voc_palette() -> dict[Color, int]:
    """Pascal VOC's color of each number: the bits of the number in turn, those of red, green and blue from the top."""
    palette = {}
    for number in range(IGNORED + 1):
        channels = (sum(((number >> (3 * i + channel)) & 1) << (7 - i) for i in range(8)) for channel in range(3))
        red, green, blue = channels
        palette[red, green, blue] = number
    return palette


def read_numbers(source: Path | bytes, name: str, palette: Palette | None = None) -> npt.NDArray[np.int64]:
    """The number of each pixel of a mask, ``(H, W)``.

    A gray mask, one with a palette and one of whole floats are their own numbers, and so is one in RGB whose channels
    are equal. With ``palette``, one in colors has the numbers of its colors; so has one with a palette of its own, if
    that gives the numbers in use other colors than ``palette``, all of which are in it.

    Args:
        source: a file of ``decoding.SUFFIXES`` or ``.npy``, or the content of one.
        name: what error messages call it.
        palette: the number of each color, where the data set lists them.

    Raises:
        ImageError: it cannot be read, or its values do not say one number for each pixel.
    """
    if _is_npy(source):
        return _of_npy(source, name, palette)
    return decoding.decode(source, name, lambda mask: _of_image(mask, palette))


def _is_npy(source: Path | bytes) -> bool:
    if isinstance(source, bytes):
        return source.startswith(_NPY_START)
    try:
        with source.open("rb") as file:
            return file.read(len(_NPY_START)) == _NPY_START
    except (OSError, ValueError):
        return False  # which the image decoder tells


def _of_npy(source: Path | bytes, name: str, palette: Palette | None) -> npt.NDArray[np.int64]:
    try:
        content = np.load(io.BytesIO(source) if isinstance(source, bytes) else source, allow_pickle=False)
    except Exception as error:  # a damaged header can hold any shape and type
        raise ImageError(f"{name}: is truncated or damaged: {error}") from error
    try:
        if content.dtype.kind not in "buif":
            raise ImageError(f"holds values of type {content.dtype}, which are not labels")
        squeezed = content.reshape(content.shape[1:]) if content.ndim == 3 and content.shape[0] == 1 else content
        return _of_array(squeezed, palette, f"an array of shape {content.shape}")
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None


def _of_image(mask: Image.Image, palette: Palette | None) -> npt.NDArray[np.int64]:
    if lossy := _lossy(mask):
        raise ImageError(f"is a {lossy}, which is lossy: its numbers are not the labels any more; save masks as PNG")
    mode = mask.mode
    if mode not in ("1", "L", "P", "F", "LA", "PA", "RGB", "RGBA", "RGBX") and not mode.startswith("I"):
        raise ImageError(f"has the color mode {mode}, which cannot hold labels; save masks as gray PNG")
    if len(mask.getbands()) > 1 and ";16" in str(getattr(mask, "tile", "")):  # of 16 bits, Pillow keeps the upper 8
        raise ImageError("has several channels of 16 bits; save masks as gray PNG of 8 or 16 bits")
    upright = decoding.upright(mask)
    if mode == "P" and palette is not None:
        return _of_own_palette(upright, palette)
    return _of_array(np.asarray(upright), palette, f"mode {mode}")


def _lossy(mask: Image.Image) -> str | None:
    """The format of a mask whose numbers are not those that were saved; None where they are."""
    if mask.format in ("JPEG", "MPO"):
        return "JPEG"
    if mask.format == "TIFF" and mask.info.get("compression") in ("jpeg", "tiff_jpeg"):
        return "TIFF compressed as JPEG"
    if mask.format == "WEBP" and _has_lossy_chunk(mask):
        return "lossy WebP"
    return "AVIF" if mask.format == "AVIF" else None


def _has_lossy_chunk(webp: Image.Image) -> bool:
    file = webp.fp  # type: ignore[attr-defined]
    place = file.tell()
    file.seek(0)
    start = file.read(1 << 12)
    file.seek(place)
    return b"VP8 " in start and b"VP8L" not in start


def _of_own_palette(mask: Image.Image, palette: Palette) -> npt.NDArray[np.int64]:
    indices = np.asarray(mask).astype(np.int64)
    own = np.asarray(mask.getpalette("RGB"), dtype=np.int64).reshape(-1, 3)
    used = {int(i): tuple(own[i].tolist()) if i < len(own) else None for i in np.unique(indices)}
    elsewhere = any(color in palette and palette[color] != i for i, color in used.items() if color is not None)
    if not elsewhere or any(color not in palette for color in used.values()):
        return indices
    return _of_colors(own[indices], palette)


def _of_array(values: npt.NDArray[Any], palette: Palette | None, what: str) -> npt.NDArray[np.int64]:
    """Numbers of ``(H, W)``, or of ``(H, W, C)`` with one to four channels, the last of two or four being opacity."""
    if values.ndim == 3 and values.shape[2] in (2, 4):
        opacity = values[:, :, -1]
        if opacity.size and (opacity != opacity.flat[0]).any():
            raise ImageError(f"has transparent pixels ({what}), which are no label; save masks as gray PNG")
        values = values[:, :, :-1]
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim == 2:
        return _whole(values)
    if values.ndim != 3 or values.shape[2] != 3:
        raise ImageError(f"is not a label map, which has one number for each pixel: {what}")
    colors_HW3 = _whole(values)
    if palette is not None:
        return _of_colors(colors_HW3, palette)
    if (colors_HW3 == colors_HW3[:, :, :1]).all():
        return colors_HW3[:, :, 0]
    colors = np.unique(colors_HW3.reshape(-1, 3), axis=0)
    raise ImageError(
        f"is an image in colors ({what}, {_several(len(colors), 'color')}: {_shown(colors)}), not a label map, which "
        'has one number for each pixel; list the color of each class as "palette" in classes.json, or in labelmap.txt '
        "(docs/segmentation.md)"
    )


def _whole(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise ImageError("holds values that are not numbers (NaN or infinite), and so are not labels")
        if (values != np.rint(values)).any():
            broken = float(values[values != np.rint(values)][0])
            raise ImageError(f"holds fractions, e.g. {broken:g}, which are not labels")
    return values.astype(np.int64)


def _of_colors(colors_HW3: npt.NDArray[np.int64], palette: Palette) -> npt.NDArray[np.int64]:
    weights = np.array([1 << 16, 1 << 8, 1])
    known = np.array(list(palette), dtype=np.int64) @ weights
    order = np.argsort(known)
    codes_HW = colors_HW3 @ weights
    places_HW = np.searchsorted(known[order], codes_HW).clip(max=len(known) - 1)
    unknown_HW = known[order][places_HW] != codes_HW
    if unknown_HW.any():
        colors = np.unique(colors_HW3[unknown_HW], axis=0)
        raise ImageError(
            f"has {_several(len(colors), 'color')} in {unknown_HW.mean():.1%} of its pixels that the palette of the "
            f"data set does not list: {_shown(colors)}"
        )
    numbers = np.array(list(palette.values()), dtype=np.int64)[order]
    found: npt.NDArray[np.int64] = numbers[places_HW]
    return found


def _several(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _shown(colors: Sequence[Any] | npt.NDArray[np.int64]) -> str:
    first = ", ".join(str(tuple(map(int, color))) for color in colors[:_SHOWN])
    return first + ", ..." * (len(colors) > _SHOWN)
