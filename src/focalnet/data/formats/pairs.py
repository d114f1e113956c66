"""Images in pairs with masks: in which folders they are, and which mask is that of an image."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from focalnet.data import images as decoding
from focalnet.data.formats.masks import NPY, Palette, read_numbers, voc_palette
from focalnet.data.formats.object_set import split_of
from focalnet.data.formats.problems import Problem
from focalnet.data.readers.collection import SYNONYMS, Split, check_exists
from focalnet.data.readers.file_names import match_names
from focalnet.data.readers.image_files import FolderOfImages, ImageFiles, TarOfImages
from focalnet.errors import ConfigError, ImageError
from focalnet.reading import read_text
from focalnet.samples import IGNORED

if TYPE_CHECKING:
    from focalnet.data.formats.label_maps import LabelRule


class Layout(NamedTuple):
    """How a data set names things.

    Args:
        images: folder of images, with folders of splits in it, or in each split's folder.
        masks: likewise of masks; the same as ``images`` where both lie together.
        image_suffix: what the names of images end in, before their type.
        mask_suffix: likewise of masks.
        class_names: by label, where the layout says.
        label_map: other numbers for some.
        lists: folder of text files that name the images of each split.
        palette: the number of each color, where masks may be in colors.
    """

    images: str
    masks: str
    image_suffix: str = ""
    mask_suffix: str = ""
    class_names: tuple[str, ...] = ()
    label_map: Mapping[int, int] = {}
    lists: str = ""
    palette: Palette | None = None


_CITYSCAPES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_FROM_IDS = {i: _CITYSCAPES_IDS.index(i) if i in _CITYSCAPES_IDS else IGNORED for i in range(34)}
_VOC_BORDER = (224, 224, 192)

#: Tried one after the other. The first is ADE20K's.
LAYOUTS = (
    Layout("images", "annotations"),
    Layout("images", "masks"),
    Layout("images", "labels"),
    Layout("image", "mask"),
    Layout("image", "label"),
    Layout("imgs", "masks"),
    Layout("leftImg8bit", "gtFine", "_leftImg8bit", "_gtFine_labelTrainIds", _CITYSCAPES),
    Layout("leftImg8bit", "gtFine", "_leftImg8bit", "_gtFine_labelIds", _CITYSCAPES, _FROM_IDS),
    Layout(
        "JPEGImages",
        "SegmentationClass",
        lists="ImageSets/Segmentation",
        palette={color: number for color, number in voc_palette().items() if number < 21} | {_VOC_BORDER: IGNORED},
    ),
    Layout("", "", mask_suffix="_mask"),  # as Roboflow writes them: train/x.jpg, train/x_mask.png
)
_FEW = 64  # different labels in the first mask of a folder that no option names
_ALL = ("default", "trainval", "all")  # lists of images where there are no splits


@dataclass(frozen=True)
class Pairs:
    """The images of a split with their masks.

    Args:
        name: what messages call them.
        images: where the images are.
        masks: where the masks are.
        names: of each image and its mask.
        layout: how they were found.
        problems: images without a mask, and masks without an image.
        remarks: what a person should know of how they were matched.
        palette: the number of each color, where masks may be in colors.
    """

    name: str
    images: ImageFiles
    masks: ImageFiles
    names: list[tuple[str, str]]
    layout: Layout
    problems: list[Problem]
    remarks: tuple[str, ...] = ()
    palette: Palette | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> Image.Image:
        """An image as 8-bit RGB.

        Raises:
            ImageError: it cannot be decoded.
        """
        name = self.names[index][0]
        return decoding.read(_content(self.images, name), self.images.path(name))

    def header(self, index: int) -> tuple[int, int, int]:
        """Height, width and Exif orientation of an image, without decoding it.

        Raises:
            ImageError: its first bytes cannot be read.
        """
        name = self.names[index][0]

        def convert(image: Image.Image) -> tuple[int, int, int]:
            return *decoding.upright_size(image), decoding.orientation(image)

        return decoding.decode(_content(self.images, name), self.images.path(name), convert)

    def numbers(self, index: int) -> npt.NDArray[np.int64]:
        """The number of each pixel as it is stored, ``(H, W)``; of a mask in colors, that of the palette.

        Raises:
            ImageError: the mask cannot be decoded, or has colors that no palette lists.
        """
        name = self.names[index][1]
        return read_numbers(_content(self.masks, name), self.masks.path(name), self.palette)

    def labels(self, index: int, rule: LabelRule, num_classes: int | None) -> npt.NDArray[np.int64]:
        """The label of each pixel, ``(H, W)``.

        Raises:
            ImageError: as ``numbers``, or the mask has a number of no class.
        """
        numbers_HW = self.numbers(index)
        try:
            return rule(numbers_HW, num_classes)
        except ImageError as error:
            raise ImageError(f"{self.masks.path(self.names[index][1])}: {error}") from None


def _content(place: ImageFiles, name: str) -> Path | bytes:
    try:
        return place.content(name)
    except (OSError, KeyError) as error:
        raise ImageError(f"{place.path(name)}: cannot be read: {error}") from error


def own_layout(images: str | None, masks: str | None, mask_suffix: str) -> tuple[Layout, ...]:
    """The layouts to try, given what a person says of theirs."""
    if images is None and masks is None and not mask_suffix:
        return LAYOUTS
    if (images is None) != (masks is None):
        raise ConfigError("data.images and data.masks go together: the folder of images and that of label maps")
    if images is not None and masks is not None:
        known = next((one for one in LAYOUTS if (one.images, one.masks) == (images, masks) and one.lists), None)
        return (Layout(images, masks, mask_suffix=mask_suffix, lists=known.lists if known else ""),)
    return tuple(one._replace(mask_suffix=mask_suffix) for one in LAYOUTS if not (one.image_suffix or one.lists))


def find_pairs(root: Path, split: Split | None, layouts: Sequence[Layout], name: str | None = None) -> Pairs | None:
    """Finds the images of a split and their masks, in folders or in tar files of the root.

    Tried are, for the layout (images, masks): ``images/train`` with ``masks/train``, ``train/images`` with
    ``train/masks``, ``train_images`` with ``train_masks`` and ``train`` with ``train_masks``, whatever the case of
    letters. An image and its mask have the same name but for suffixes, in subfolders, too; see ``matched``.

    Args:
        root: the folder of the data set.
        split: which one; None for a set without splits.
        layouts: names to try.
        name: the split's folder, if it has an unusual name.

    Raises:
        DataError: the root is not there, or holds something that cannot be read.
    """
    check_exists(root)
    names = ("",) if split is None else SYNONYMS[split] if name is None else (name,)
    places: list[ImageFiles] = [FolderOfImages(root)] if root.is_dir() else []
    archives = sorted(root.glob("*.tar")) if root.is_dir() else [root]
    places += [TarOfImages(archive) for archive in archives]
    for place in places:
        for layout in layouts:
            found = _listed(place, layout, names) if layout.lists else None
            if found is not None:
                return found
            for images, masks in _folders(layout, names):
                found = _found(place, images, masks, layout)
                if found is not None:
                    return found
    return None


def _folders(layout: Layout, splits: Sequence[str]) -> Iterator[tuple[str, str]]:
    for split in splits:
        yield f"{layout.images}/{split}", f"{layout.masks}/{split}"
        if split and layout.images:
            yield f"{split}/{layout.images}", f"{split}/{layout.masks}"
            if "/" not in layout.images + layout.masks:
                yield f"{split}_{layout.images}", f"{split}_{layout.masks}"
                yield split, f"{split}_{layout.masks}"
                yield split, f"{split}annot"  # as SegNet's CamVid


def _found(place: ImageFiles, images: str, masks: str, layout: Layout) -> Pairs | None:
    of_images, of_masks = (_below(place, folder) for folder in (images, masks))
    if isinstance(of_masks, FolderOfImages) and not of_masks.folder.is_dir():
        return None
    return matched(of_images, of_masks, layout)


def _below(place: ImageFiles, folder: str) -> ImageFiles:
    """A folder of a place; on disk, the one that is called so but for the case of letters, if it is the only one."""
    parts = [part for part in folder.split("/") if part]
    if not isinstance(place, FolderOfImages):
        return place.below("/".join(parts))
    actual = place.folder
    for part in parts:
        if not (actual / part).is_dir() and actual.is_dir():
            same = [one.name for one in actual.iterdir() if one.name.lower() == part.lower() and one.is_dir()]
            part = same[0] if len(same) == 1 else part
        actual = actual / part
    return FolderOfImages(actual)


def _listed(place: ImageFiles, layout: Layout, splits: Sequence[str]) -> Pairs | None:
    """The pairs of a split that a text file of a VOC-like data set names."""
    lists = place.below(layout.lists)
    file = next((f"{name}.txt" for name in (splits if any(splits) else _ALL) if f"{name}.txt" in lists), None)
    if file is None:
        return None
    found = _found(place, layout.images, layout.masks, layout)
    if found is None:
        return None
    content = _content(lists, file)
    text = content.decode("utf-8-sig", "replace") if isinstance(content, bytes) else read_text(content)
    wanted = [line.strip().strip("/").removeprefix(f"{layout.images}/") for line in text.splitlines() if line.strip()]
    of_stem = {_stem(image): (image, mask) for image, mask in found.names}
    stems = match_names([_stem(name) if _has_type(name) else name for name in wanted], of_stem)
    names = [of_stem[stem] for stem in stems.files.values()]
    missing = [one for one in wanted if (_stem(one) if _has_type(one) else one) not in stems.files]
    problems = [Problem(lists.path(file), one, "has no image with a mask") for one in missing]
    return Pairs(
        lists.path(file), found.images, found.masks, sorted(names), layout, problems, found.remarks, found.palette
    )


def _has_type(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in decoding.SUFFIXES


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def matched(images: ImageFiles, masks: ImageFiles, layout: Layout) -> Pairs | None:
    """Pairs of image and mask by stem; None where images or masks are missing.

    Stems that differ in spelling only (case, Unicode normalization, escapes) are the same where that is unique. Of
    what is left, a mask belongs to an image if it has its whole name (``0.jpg.png``), or if all names have something
    before or behind what is alike (``0_image``, ``0_mask``).
    """
    problems: list[Problem] = []
    names, mask_names = images.names(), masks.names((*decoding.SUFFIXES, NPY))
    together = images.path("") == masks.path("")
    if together:
        names, mask_names = _apart(names, layout)
    of_images = _by_stem(images, names, layout.image_suffix, problems)
    of_masks = _by_stem(masks, mask_names, layout.mask_suffix, problems)
    if not of_images or not of_masks or (together and not of_images.keys() & of_masks.keys()):
        return None
    exact = match_names(of_images, of_masks)
    mask_of = dict(exact.files)
    remarks = [exact.remark()]
    left = [stem for stem in of_images if stem not in mask_of]
    left_masks = [stem for stem in of_masks if stem not in set(mask_of.values())]
    near = {} if layout.mask_suffix else _near({stem: of_images[stem] for stem in left}, left_masks)
    if near:
        image, mask = next(iter(near.items()))
        remarks.append(
            f"{len(near)} masks are not called as their images, e.g. {of_masks[mask]} is taken as the mask of "
            f"{of_images[image]}"
        )
    mask_of |= near
    for stem in sorted(of_images.keys() - mask_of.keys()):
        path = images.path(of_images[stem])
        why = exact.why_ambiguous(stem) if stem in exact.ambiguous else ""
        problems.append(
            Problem(path, "", f"has no mask {masks.path(stem + layout.mask_suffix)}.*" + f": {why}" * bool(why))
        )
    for stem in sorted(of_masks.keys() - set(mask_of.values())):
        path = masks.path(of_masks[stem])
        problems.append(Problem(path, "", f"has no image {images.path(stem + layout.image_suffix)}.*"))
    pairs = sorted((of_images[image], of_masks[mask]) for image, mask in mask_of.items())
    name = images.path("").rstrip("/.")
    told = tuple(f"{name}: {remark}" for remark in remarks if remark)
    return Pairs(name, images, masks, pairs, layout, problems, told, layout.palette)


def _apart(names: Sequence[str], layout: Layout) -> tuple[list[str], list[str]]:
    """Images and masks of one folder: by the suffix of masks, else a JPEG file and another of the same stem."""
    if layout.mask_suffix:
        masks = [name for name in names if _stem(name).endswith(layout.mask_suffix)]
    else:
        stems = {_stem(name) for name in names if _is_jpeg(name)}
        masks = [name for name in names if not _is_jpeg(name) and _stem(name) in stems]
    return [name for name in names if name not in set(masks)], masks


def _is_jpeg(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in (".jpg", ".jpeg", ".jfif")


def _by_stem(place: ImageFiles, names: Iterable[str], suffix: str, problems: list[Problem]) -> dict[str, str]:
    """Name by what is left of it without type and suffix; those without the suffix are something else."""
    found: dict[str, str] = {}
    for name in names:
        stem = _stem(name)
        if not stem.endswith(suffix):
            continue
        stem = stem.removesuffix(suffix)
        if stem in found:
            problems.append(Problem(place.path(name), "", f"has the stem of {found[stem]}, too"))
            continue
        found[stem] = name
    return found


def _near(images: Mapping[str, str], masks: Sequence[str]) -> dict[str, str]:
    """The mask of each image by other names; nothing unless it is one of all images left, and each once.

    Args:
        images: name by stem.
        masks: stems.
    """
    if not images or not masks:
        return {}
    whole = {stem: _comparable(name) for stem, name in images.items()}, {mask: _comparable(mask) for mask in masks}
    bare = {stem: _comparable(stem) for stem in images}
    rules = [whole, (_without_affixes(images), _without_affixes(masks))]
    rules += [(bare, {mask: core(mask) for mask in masks}) for core in _cores(list(bare.values()), masks[0])]
    for of_images, of_masks in rules:
        mask_by_core = {core: mask for mask, core in of_masks.items()}
        found = {stem: mask_by_core[core] for stem, core in of_images.items() if core in mask_by_core}
        unique = len(set(of_images.values())) == len(images) and len(mask_by_core) == len(masks)
        if unique and len(found) == min(len(images), len(masks)):
            return found
    return {}


def _cores(images: Sequence[str], mask: str) -> list[Callable[[str], str]]:
    """Ways to make the stem of an image of that of a mask: what a mask has before and behind one of them."""
    text = _comparable(mask)
    behind = {text[len(image) :] for image in images if re.match(r"[-_. ]", text.removeprefix(image) or "x")}
    before = {text[: -len(image)] for image in images if re.search(r"[-_. ]$", text.removesuffix(image) or "x")}
    ways = [partial(_cut, before="", behind=one) for one in sorted(behind) if one != text]
    return [*ways, *(partial(_cut, before=one, behind="") for one in sorted(before) if one != text)]


def _cut(mask: str, before: str, behind: str) -> str:
    text = _comparable(mask)
    return text[len(before) : len(text) - len(behind)] if text.startswith(before) and text.endswith(behind) else mask


def _comparable(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _without_affixes(stems: Iterable[str]) -> dict[str, str]:
    """Stems without what all begin with, up to a separator, and all end in, from a separator on."""
    known = {stem: _comparable(stem) for stem in stems}
    before = re.match(r".*[-_. /]|", _common_start(list(known.values())))
    behind = re.match(r".*[-_. ]|", _common_start([text[::-1] for text in known.values()]))
    start, end = (len(one[0]) if one else 0 for one in (before, behind))
    return {stem: text[start : len(text) - end] for stem, text in known.items()}


def _common_start(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)  # what these two have in common, all between them have
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(letter for letter, _ in same)


def suggest(root: Path) -> str:
    """Folders that look like images and masks, as the options that name them; "" where none do.

    They are right below the root, or in each of its splits.
    """
    below = [path for path in sorted(root.glob("*")) if path.is_dir() and split_of(path.name)]
    return next((found for folder in (root, *below) if (found := _suggest_in(folder))), "")


def _suggest_in(root: Path) -> str:
    folders = [root, *sorted(path for path in root.glob("*") if path.is_dir() and not path.name.startswith("."))]
    stems = {folder: _stems(folder) for folder in folders if folder.is_dir()}
    for folder, names in stems.items():
        images, place = {_stem(name) for name in names}, folder.relative_to(root).as_posix()
        for suffix in ("_mask", "_masks", "_label", "_labels", "_seg", "_gt", "_segmentation", "_annotation", "-mask"):
            if len(images) > 1 and 2 * sum(stem + suffix in images for stem in images) >= len(images):
                return f"--images {place} --label-maps {place} --mask-suffix {suffix}"
        _, masks = _apart(names, LAYOUTS[0])
        if len(masks) > 1 and 2 * len(masks) == len(names) and _looks_like_labels(folder / masks[0]):
            return f"--images {place} --label-maps {place}"
    for folder, names in stems.items():
        for other, others in stems.items():
            same = {_stem(name) for name in names} & {_stem(name) for name in others}
            masks = [name for name in others if _stem(name) in same and not _is_jpeg(name)]
            if other != folder and len(same) > 1 and any(map(_is_jpeg, names)) and len(masks) == len(others):
                if not _looks_like_labels(other / masks[0]):
                    continue
                return f"--images {folder.relative_to(root)} --label-maps {other.relative_to(root)}"
    return ""


def _looks_like_labels(file: Path) -> bool:
    """Whether a file holds a few numbers and no photo."""
    try:
        return len(np.unique(read_numbers(file, str(file)))) <= _FEW
    except ImageError:
        return False


def _stems(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.suffix.lower() in (*decoding.SUFFIXES, NPY)]


def check_sizes(pairs: Pairs, index: int, image: tuple[int, int], mask: tuple[int, int]) -> None:
    """Raises ``ImageError`` unless an image and its mask have as many rows and columns."""
    if image != mask:
        place = pairs.masks.path(pairs.names[index][1])
        raise ImageError(
            f"{place}: has {mask[1]} x {mask[0]} pixels, its image {pairs.images.path(pairs.names[index][0])} "
            f"has {image[1]} x {image[0]}"
        )
