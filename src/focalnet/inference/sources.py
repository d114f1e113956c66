"""What people give as images: files, addresses, folders, patterns, videos, bytes, opened images, arrays and tensors."""

from __future__ import annotations

import glob
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias
from urllib.parse import quote, urlsplit

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from focalnet.data import images as decoding
from focalnet.errors import ImageError, InputError
from focalnet.inference.video import frames, is_video

logger = logging.getLogger(__name__)

Source: TypeAlias = "str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | npt.NDArray[Any] | Tensor"
"""A file or its address, its bytes, an opened file, an image, an array or a tensor; of several images: a folder, a
pattern, a video, a batch."""

_TAKEN = (
    "a path, address, folder, pattern, video, bytes, opened file, PIL image, NumPy array (H, W, 3) in RGB or tensor "
    "(3, H, W), or a list or generator of them"
)
_SECONDS, _BYTES = 30, 1 << 29  # that an address may take


def is_address(source: Any) -> bool:
    """Whether it is the address of a file on a server."""
    return isinstance(source, str) and re.match(r"https?://", source, re.IGNORECASE) is not None


def is_one(source: Any) -> bool:
    """Whether a source is one image, and not several.

    Raises:
        InputError: it is neither.
    """
    if isinstance(source, (bytes, bytearray, memoryview, Image.Image)) or hasattr(source, "read"):
        return True
    if isinstance(source, (np.ndarray, Tensor)):
        return source.ndim != 4
    if isinstance(source, (str, os.PathLike)):
        return is_address(source) or not (_is_folder(source) or _is_pattern(source) or is_video(Path(source)))
    if isinstance(source, Iterable) and not isinstance(source, dict):
        return False
    raise InputError(f"a {type(source).__name__} is not an image; what is taken is {_TAKEN}")


def several(source: Any) -> Iterator[Any]:
    """The images of a source that is not one alone, one after another; of a video its frames.

    Raises:
        DataError: a folder or pattern without images.
        ImageError: a video that cannot be read.
    """
    if not isinstance(source, (str, os.PathLike)):
        yield from source
    elif not _is_folder(source) and is_video(Path(source)) and not _is_pattern(source):
        yield from frames(Path(source))
    else:
        yield from decoding.find(source)


def read(source: Any) -> tuple[Image.Image, str | None]:
    """One image as 8-bit RGB, and the path or address it is from.

    Raises:
        ImageError: a file that cannot be read.
        InputError: no image, or an array or tensor of another shape or type; the message says what is taken.
    """
    if is_address(source):
        return decoding.read(_fetched(source), source), source
    if isinstance(source, (str, os.PathLike)):
        return decoding.read(source), str(source)
    if isinstance(source, Image.Image):
        return decoding.read(source), None
    if isinstance(source, (bytes, bytearray, memoryview)):
        return decoding.read(bytes(source)), None
    if isinstance(source, Tensor):
        return Image.fromarray(_of_tensor(source)), None
    if isinstance(source, np.ndarray):
        if isinstance(source, np.ma.MaskedArray):
            raise InputError("a masked array is not an image: fill it (filled()), so that every pixel has a value")
        return Image.fromarray(_of_array(np.asarray(source))), None
    if hasattr(source, "read"):
        content = source.read()
        if isinstance(content, bytes):
            return decoding.read(content, getattr(source, "name", None)), None
        raise InputError(f"a {type(source).__name__} gives text, not bytes; open the file in binary mode")
    raise InputError(f"a {type(source).__name__} is not an image; what is taken is {_TAKEN}")


def _is_folder(source: str | os.PathLike[str]) -> bool:
    try:
        return Path(source).is_dir()
    except (OSError, ValueError):  # too long, or with a null character
        return False


def _is_pattern(source: str | os.PathLike[str]) -> bool:
    return glob.has_magic(os.fspath(source)) and not os.path.lexists(source)


def _fetched(address: str) -> bytes:
    parts = urlsplit(address)
    escaped = parts._replace(
        path=quote(parts.path, safe="/%:@!$&'()*+,;=~"), query=quote(parts.query, safe="/%=&+?:@,;")
    )
    request = urllib.request.Request(escaped.geturl(), headers={"User-Agent": "focalnet"})
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            content: bytes = answer.read(_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it keeps the connection
        raise ImageError(f"{address}: cannot be fetched ({error}); download it and give its path") from error
    if len(content) > _BYTES:
        raise ImageError(f"{address}: is larger than {_BYTES >> 20} MiB; download it and give its path")
    return content


def _of_tensor(tensor: Tensor) -> npt.NDArray[np.uint8]:
    """``(H, W, 3)`` of ``(C, H, W)`` or ``(H, W)``."""
    if tensor.ndim == 3 and tensor.shape[0] not in (1, 3, 4):
        raise InputError(
            f"a tensor of shape {tuple(tensor.shape)} is not an image, which is (C, H, W) with 1, 3 or 4 channels first"
        )
    if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
        raise InputError(f"a tensor without plain values ({tensor.layout}, {tensor.device}) is not an image")
    values = tensor.detach().cpu()
    array = (values.float() if values.is_floating_point() else values).numpy()
    return _of_array(np.moveaxis(array, 0, -1) if array.ndim == 3 else array, "a tensor")


def _of_array(values: npt.NDArray[Any], what: str = "an array") -> npt.NDArray[np.uint8]:
    """``(H, W, 3)``, uint8, of gray or RGB; an opacity is laid over white, as that of files."""
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or values.shape[2] not in (1, 3, 4) or 0 in values.shape:
        raise InputError(
            f"{what} of shape {values.shape} is not an image, which is (H, W) or (H, W, C) with 1, 3 (red, green, "
            "blue) or 4 channels last"
        )
    pixels = _eight_bits(values, what)
    if pixels.shape[2] == 1:
        return pixels.repeat(3, axis=2)
    if pixels.shape[2] == 4:
        return np.asarray(decoding.read(Image.fromarray(pixels, "RGBA")))
    logger.info("%s of an image is read as red, green, blue; of OpenCV's blue, green, red give image[..., ::-1]", what)
    return np.ascontiguousarray(pixels)


def _eight_bits(values: npt.NDArray[Any], what: str) -> npt.NDArray[np.uint8]:
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "fui":
        raise InputError(f"{what} of {values.dtype} is not an image: give uint8")
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        if not (low >= 0 and high <= 1):  # NaN, too
            raise InputError(
                f"{what} of floating point has values from {low:g} to {high:g}: give 0 to 1, neither normalized nor "
                "up to 255, or uint8"
            )
        return np.rint(values.astype(np.float64) * 255).astype(np.uint8)
    if values.dtype == np.uint16:
        return np.rint(values * (255 / 65535)).astype(np.uint8)
    if low >= 0 and high <= 255:
        return values.astype(np.uint8)
    raise InputError(f"{what} of {values.dtype} with values from {low} to {high} is not an image: give uint8")
