"""The colors of all drawings."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Sequence
from functools import cache
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

RGB: TypeAlias = "tuple[int, int, int]"
Colors: TypeAlias = "npt.NDArray[np.float64]"  # (N, 3)

INK: Final = "#1b1f24"  # text
FAINT: Final = "#6a737d"  # secondary text
PAPER: Final = "#ffffff"  # background
TRACK: Final = "#e6e9ed"  # the empty part of a bar
BAR: Final = "#2f6fde"  # the best class
BAR_REST: Final = "#a9c3f2"  # the others

#: Class colors, in order and repeating; white text is readable on each.
CLASSES: Final = (
    "#2f6fde", "#d1495b", "#2e8b57", "#b8651b", "#7b4fc9", "#0e7c86", "#b03a91", "#5f6b13", "#8a4b3c", "#3a4a8c",
)  # fmt: skip

NOTHING: Final = "#000000"  # pixels without a class
FEWEST_KNOWN: Final = 8  # classes of a data set whose colors are taken: "road" and "sky" may be of any
REGIONS: Final = 256  # colors of areas before they repeat

HEAT: Final = "viridis"  # matplotlib's color map for heatmaps and kernels without negative values
SIGNED: Final = "RdBu_r"  # for those with: blue below zero, red above


class Theme(NamedTuple):
    """The colors of a sheet: background, text, secondary text."""

    paper: str
    ink: str
    faint: str


LIGHT: Final = Theme(PAPER, INK, FAINT)
DARK: Final = Theme("#14171c", "#e6e9ed", "#9aa4af")


def of_class(label: int) -> str:
    """The color of a class."""
    return CLASSES[label % len(CLASSES)]


def rgb(color: str) -> RGB:
    """``"#ff8000"`` as (255, 128, 0)."""
    red, green, blue = bytes.fromhex(color.removeprefix("#"))
    return red, green, blue


def of_region(label: int) -> RGB:
    """The color of a class in label maps; the first 256 differ."""
    red, green, blue = regions()[label % REGIONS].tolist()
    return red, green, blue


def shades(color: RGB, count: int, *, alone: bool = False) -> list[RGB]:
    """Shades of a color for the objects of a class: the color itself, then lighter and darker neighboring hues.

    Args:
        color: of the class.
        count: number of objects.
        alone: there are no other classes, so that hues may be farther away.
    """
    spread = 1.0 if alone else 0.3
    hue, lightness, saturation = colorsys.rgb_to_hls(*(value / 255 for value in color))
    varied = [color]
    for step in range(1, count):
        turn, towards, share = _VARIED[(step - 1) % len(_VARIED)]
        values = colorsys.hls_to_rgb((hue + spread * turn) % 1, lightness + share * (towards - lightness), saturation)
        red, green, blue = (round(255 * value) for value in values)
        varied.append((red, green, blue))
    return varied


# Turn of the hue, and lightness towards white or black: consecutive shades are far apart.
_VARIED = (
    *((0.07, 1, 0.30), (-0.07, 0, 0.25), (0.0, 1, 0.45), (0.11, 0, 0.15), (-0.11, 1, 0.25), (0.0, 0, 0.4)),
    *((0.07, 0, 0.3), (-0.07, 1, 0.4), (0.14, 1, 0.15), (-0.14, 0, 0.2)),
)


def of_map(label: int, names: Sequence[str]) -> RGB:
    """The color of a class in drawings of label maps: that of a well-known data set, where the names are of one."""
    own = of_names(names) or []
    return own[label] if label < len(own) else of_region(label)


def of_names(names: Sequence[str]) -> list[RGB] | None:
    """The colors that the classes of Cityscapes or CamVid have in their own label maps.

    None unless there are several, as of such a data set, and all of them are classes of one.
    """
    plain = [re.sub(r"[^a-z]", "", name.casefold()) for name in names]
    for known in (_CITYSCAPES, _CAMVID):
        if len(plain) >= FEWEST_KNOWN and all(name in known for name in plain):
            return [known[name] for name in plain]
    return None


_CITYSCAPES: Final[dict[str, RGB]] = {
    "road": (128, 64, 128), "sidewalk": (244, 35, 232), "building": (70, 70, 70), "wall": (102, 102, 156),
    "fence": (190, 153, 153), "pole": (153, 153, 153), "trafficlight": (250, 170, 30), "trafficsign": (220, 220, 0),
    "vegetation": (107, 142, 35), "terrain": (152, 251, 152), "sky": (70, 130, 180), "person": (220, 20, 60),
    "rider": (255, 0, 0), "car": (0, 0, 142), "truck": (0, 0, 70), "bus": (0, 60, 100), "train": (0, 80, 100),
    "motorcycle": (0, 0, 230), "bicycle": (119, 11, 32),
}  # fmt: skip
_CAMVID: Final[dict[str, RGB]] = {
    "sky": (128, 128, 128), "building": (128, 0, 0), "pole": (192, 192, 128), "columnpole": (192, 192, 128),
    "road": (128, 64, 128), "pavement": (60, 40, 222), "sidewalk": (60, 40, 222), "tree": (128, 128, 0),
    "sign": (192, 128, 128), "signsymbol": (192, 128, 128), "fence": (64, 64, 128), "car": (64, 0, 128),
    "pedestrian": (64, 64, 0), "bicyclist": (0, 128, 192), "cyclist": (0, 128, 192),
}  # fmt: skip


def ink_on(color: RGB) -> str:
    """White or dark, whichever is easier to read on a color."""
    luminance = float(_linear(np.array([color], dtype=np.float64))[0] @ (0.2126, 0.7152, 0.0722))
    return PAPER if luminance < 0.3 else INK


@cache
def regions() -> npt.NDArray[np.uint8]:
    """Colors ``(256, 3)``, each as far as possible from all before it, also with red-green color blindness.

    Distances are in Oklab (B. Ottosson, 2020): the minimum over normal vision and, weighted by 2, simulated protanopia
    and deuteranopia (Machado et al., 2009). Very light, dark, gray and saturated colors are excluded.
    """
    steps = np.arange(0, 256, 17)
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3).astype(np.float64)
    lightness, *opponents = _oklab(_linear(candidates)).T
    chroma = np.hypot(*opponents)
    candidates = candidates[(lightness > 0.42) & (lightness < 0.88) & (chroma > 0.06) & (chroma < 0.21)]
    light = _linear(candidates)
    visions = [(1.0, _oklab(light)), *((2.0, _oklab((light @ matrix.T).clip(0, 1))) for matrix in (_PROTAN, _DEUTAN))]
    nearest = np.full(len(candidates), np.inf)
    chosen = [int(np.abs(candidates - rgb(BAR)).sum(1).argmin())]
    while len(chosen) < REGIONS:
        distances = [weight * np.linalg.norm(lab - lab[chosen[-1]], axis=1) for weight, lab in visions]
        nearest = np.minimum(nearest, np.min(distances, 0))
        chosen.append(int(nearest.argmax()))
    colors: npt.NDArray[np.uint8] = candidates[chosen].astype(np.uint8)
    return colors


_PROTAN = np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]])
_DEUTAN = np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]])
_CONES = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]]
)  # fmt: skip
_OPPONENT = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]]
)  # fmt: skip


def _linear(colors: Colors) -> Colors:
    """Converts sRGB, 0 to 255, to linear light, 0 to 1."""
    share = colors / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def _oklab(light: Colors) -> Colors:
    """Converts linear light to Oklab: lightness and two opponent channels, perceptually uniform."""
    lab: Colors = np.cbrt(light @ _CONES.T) @ _OPPONENT.T
    return lab
