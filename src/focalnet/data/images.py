"""Any image a person may have, as 8-bit RGB; and the images in files, folders and patterns."""

from __future__ import annotations

import functools
import glob
import io
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from focalnet.errors import DataError, ImageError

#: What counts as an image in a folder. A file named one by one is opened whatever its suffix.
SUFFIXES = tuple(".avif .bmp .gif .jfif .jp2 .jpeg .jpg .pbm .pgm .png .ppm .tif .tiff .webp".split())
#: Images that Pillow alone does not open.
UNREAD = frozenset(".arw .cr2 .cr3 .dcm .dng .exr .heic .heif .jxl .nef .npy .psd .raw .svg".split())
# Pillow also opens documents and scientific containers, some through external programs; those are not images.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")

logger = logging.getLogger(__name__)

_PHOTOMETRIC = 262  # TIFF's tag that says which value is white

T = TypeVar("T")


def read(source: str | os.PathLike[str] | bytes | Image.Image, name: str | None = None) -> Image.Image:
    """Decodes an image to 8-bit RGB, upright.

    Exif orientation is applied; transparency is laid over white; 16-bit, 32-bit and float values are
    scaled, not clipped; of an animation the first frame is taken; the content, not the suffix, decides
    the format. Color profiles are ignored, as in the published models' training.

    Args:
        source: a file, the content of one, or an opened image.
        name: what error messages call it; default: the file's path.

    Returns:
        A new image of mode ``"RGB"``, independent of the file.

    Raises:
        ImageError: it cannot be read; the message names the file and what is wrong with it.
    """
    return decode(source, name, _loaded_as_rgb)


def decode(
    source: str | os.PathLike[str] | bytes | Image.Image, name: str | None, convert: Callable[[Image.Image], T]
) -> T:
    """Opens an image for ``convert``, which loads its pixels if it needs them; what goes wrong is told as in ``read``.

    Args:
        source: a file, the content of one, or an opened image.
        name: what error messages call it; default: the file's path.
        convert: makes of the image what is returned; an ``ImageError`` of its own need not name the file.

    Raises:
        ImageError: it cannot be read; the message names the file and what is wrong with it.
    """
    if isinstance(source, Image.Image):
        return _converted(source, name or getattr(source, "filename", "") or "image", convert)
    if isinstance(source, bytes):
        return _open(io.BytesIO(source), name or f"image of {len(source)} bytes", convert)
    path = Path(source)
    name = name or str(path)
    try:
        if path.is_dir():
            raise ImageError(f"{name}: is a folder, not an image")
        if path.exists() and not path.is_file():
            raise ImageError(f"{name}: is not a regular file")  # a pipe would be waited for
        with path.open("rb") as file:
            return _open(file, name, convert)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise ImageError(f"{name}: cannot be read: {_reason(error)}") from error


@contextmanager
def size_limit(megapixels: int) -> Iterator[None]:
    """Makes Pillow refuse larger images: it does so above twice ``MAX_IMAGE_PIXELS``, and warns above that number."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, megapixels * 500_000
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of an image once its Exif orientation is applied; its pixels are not loaded."""
    width, height = image.size
    if image.format == "TIFF":  # of which Pillow gives the upright size, while its orientation is still to be applied
        tags = image.tag_v2  # type: ignore[attr-defined]
        width, height = int(tags[ExifTags.Base.ImageWidth]), int(tags[ExifTags.Base.ImageLength])
    return (width, height) if orientation(image) in (5, 6, 7, 8) else (height, width)


def find(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Lists the images in files, folders and patterns: in the order given, each once.

    Folders are searched with all their subfolders, in sorted order, for files with one of ``SUFFIXES``;
    hidden files and folders are passed over. Patterns are those of the shell, with ``**`` for any depth.

    Raises:
        DataError: a path does not exist or cannot be listed, or holds no image.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not given:
        raise DataError("no images: name at least one file, folder or pattern")
    if any(os.fspath(one) == "" for one in given):  # not the current folder: a variable that is not set
        raise DataError('no images: "" names no file, folder or pattern')
    found: dict[Path, None] = {}
    for address in (one for one in map(str, given) if re.match(r"https?://", one)):
        raise DataError(
            f"{address}: is an address; download it, or read it from Python: focalnet.Predictor(...)(address)"
        )
    for path in map(Path, given):
        try:
            found |= dict.fromkeys(_find(path))
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {_reason(error)}") from error
    return list(found)


def _find(path: Path) -> list[Path]:
    if path.is_dir():
        files = list_folder(path)
        if unread := list_folder(path, tuple(UNREAD)):
            logger.warning(
                "%s: %d files are not read, e.g. %s; save them as PNG", path, len(unread), unread[0].relative_to(path)
            )
    elif path.exists():
        return [path]
    elif glob.has_magic(str(path)):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        files = [f for m in matches for f in (list_folder(m) if m.is_dir() else [m] if is_image(m) else [])]
    else:
        raise DataError(f"{path}: no such file or folder")
    if not files:
        raise DataError(f"{path}: no images there (looked for {' '.join(SUFFIXES)})")
    return files


def list_folder(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """Every image in a folder and its subfolders, sorted by path; hidden ones are passed over.

    Links to folders are followed, but never into a folder that they are in: that would list its files again and again.

    Args:
        folder: where to look.
        suffixes: of the files to list, in lower case.

    Raises:
        DataError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed: {_reason(error)}") from error

    found: list[Path] = []
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [f for f in folders if not f.startswith(".") and not is_loop(Path(parent, f), folder)]
        found += [Path(parent, f) for f in files if is_image(Path(f), suffixes)]
    return sorted(found)


def is_loop(link: Path, root: Path) -> bool:
    """Whether a folder below a root is a link to a folder that it is itself in, at any depth."""
    if not link.is_symlink():
        return False
    real = os.path.realpath(link)
    above = [link.parent, *link.parent.parents]
    inside = above[: len(link.relative_to(root).parts)]  # the last of them is the root
    return any(Path(os.path.realpath(folder)).is_relative_to(real) for folder in inside)


def is_image(path: Path, suffixes: Sequence[str] = SUFFIXES) -> bool:
    """Whether a file counts as an image in a folder, by its name."""
    return path.suffix.lower() in suffixes and not path.name.startswith(".")


@functools.cache
def _known_formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _open(file: IO[bytes], name: str, convert: Callable[[Image.Image], T]) -> T:
    if not file.read(1):
        raise ImageError(f"{name}: is empty (0 bytes)")
    file.seek(0)
    try:
        image = Image.open(file, formats=_known_formats())
    except UnidentifiedImageError:
        suffix = Path(name).suffix.lower()
        if suffix in UNREAD:
            raise ImageError(f"{name}: images of this kind ({suffix}) are not read; save it as PNG") from None
        raise ImageError(f"{name}: is not an image, or damaged from its first bytes") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{name}: is too large: {str(error).rstrip('.')}; if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS, "
            "or --max-megapixels of focalnet predict"
        ) from None
    except Exception as error:  # a decoder fails on damaged bytes with whatever it stumbles over
        raise ImageError(f"{name}: is truncated or damaged: {_reason(error)}") from error
    return _converted(image, name, convert)


def _converted(image: Image.Image, name: str, convert: Callable[[Image.Image], T]) -> T:
    try:
        return convert(image)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None
    except Exception as error:  # see _open
        raise ImageError(f"{name}: is truncated or damaged: {_reason(error)}") from error


def _loaded_as_rgb(image: Image.Image) -> Image.Image:
    image.load()
    rgb = _to_rgb(upright(image))
    if 0 in rgb.size:
        raise ImageError(f"has no pixels ({rgb.width} x {rgb.height})")
    return rgb


def upright(image: Image.Image) -> Image.Image:
    """The image with its Exif orientation applied."""
    return ImageOps.exif_transpose(image) if orientation(image) != 1 else image


def orientation(image: Image.Image) -> int:
    """The Exif orientation, 1 to 8; 1 is upright."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # the pixels are whole, only the notes about them are damaged
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # I;16, I;16B, I, F
        return _to_8_bit(_black_is_0(image), image.mode).convert("RGB")
    if image.has_transparency_data:
        colors = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, colors).convert("RGB")
    if image.mode not in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"):
        raise ImageError(f"has the color mode {image.mode}, which cannot be turned into RGB")
    return image.convert("RGB")


def _black_is_0(image: Image.Image) -> npt.NDArray[Any]:
    """The values of a gray image; Pillow leaves 16-bit TIFF files as they are in which 0 is white."""
    values_HW = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    return 65535 - values_HW if image.mode.startswith("I;16") and tags.get(_PHOTOMETRIC) == 0 else values_HW


def _to_8_bit(values_HW: npt.NDArray[Any], mode: str) -> Image.Image:
    """Scales gray values of more than 8 bits: by type where the type has a range, else by the values' range.

    16-bit values are 0...65535. For 32-bit integers and floats, white is the first of 1 (floats only), 255
    and 65535 that no value exceeds; values beyond that, or negative ones, are stretched from min to max.
    """
    values = values_HW.astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ImageError("holds values that are not numbers (NaN or infinite)")
    ranges = [65535.0] if mode.startswith("I;16") else [255.0, 65535.0] if mode == "I" else [1.0, 255.0, 65535.0]
    white = next((w for w in ranges if high <= w), None)
    if low < 0 or white is None:
        values -= low
        white = (high - low) or 1.0
    values *= 255.0 / white  # in place: a scan of 100 megapixels is common among 16-bit images
    return Image.fromarray(np.rint(values, out=values).astype(np.uint8))


def _reason(error: Exception) -> str:
    text = (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__
    return " ".join(text.split())
