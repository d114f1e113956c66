"""COCO annotation files of objects: found, read, and checked entry by entry.

This is one file because it is one format: what is looked for, what may be wrong with it, and what it means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from focalnet.data.formats.image_entries import (
    Annotated,
    Annotation,
    Id,
    as_id,
    by_id,
    in_order,
    is_whole,
    known_id,
    locate,
    read_image,
    read_images,
)
from focalnet.data.formats.object_set import Written
from focalnet.data.formats.outlines import are_numbers, around, polygons, segmentation_problem
from focalnet.data.formats.outlines import to_bitmaps as to_bitmaps
from focalnet.data.formats.plausible import CORNERS, SHARES, BoxesSeen, alike, are_shares, repeated
from focalnet.data.formats.problems import Problem, Report
from focalnet.data.readers.collection import SYNONYMS, Split, check_exists
from focalnet.data.readers.image_files import ImageFiles, find_images, other_splits
from focalnet.errors import DataError, ImageError
from focalnet.reading import parse_json, read_text

AnnotationFormat: TypeAlias = Literal["instances", "panoptic"]

TOLERANCE = 1.0  # pixels that a box may reach over the edge: annotation tools round


@dataclass(frozen=True)
class CocoFile:
    """What an annotation file says. Labels count from 0 in the order of the category ids, whatever their gaps.

    Args:
        path: of the file.
        class_names: by label.
        category_ids: by label.
        images: in the order of the file.
        problems: what was left out, or kept only in part.
        remarks: assumptions, one line each.
    """

    path: Path
    class_names: tuple[str, ...]
    category_ids: tuple[Id, ...]
    images: list[Annotated]
    problems: list[Problem]
    remarks: list[str] = field(default_factory=list)

    def label_of(self) -> dict[Id, int]:
        """Label by category id."""
        return {category: label for label, category in enumerate(self.category_ids)}

    def in_order_of(self, names: Sequence[str]) -> CocoFile:
        """The same file with its classes in the order of these names; unchanged unless it has exactly these names."""
        label_of = {name: label for label, name in enumerate(self.class_names)}
        if len(label_of) != len(self.class_names) or sorted(names) != sorted(self.class_names):
            return self
        ids = tuple(self.category_ids[label_of[name]] for name in names)
        return replace(self, class_names=tuple(names), category_ids=ids)

    def to_coco(self, images: Sequence[Annotated] | None = None) -> dict[str, Any]:
        """The usable content in COCO's own format, as the evaluation takes it; of some images, or of all."""
        images = self.images if images is None else images
        named = zip(self.category_ids, self.class_names, strict=True)
        return {
            "images": [
                {"id": i.image_id, "file_name": i.file_name, "height": i.height, "width": i.width} for i in images
            ],
            "annotations": [annotation for image in images for annotation in image.annotations],
            "categories": [{"id": number, "name": name} for number, name in named],
        }


@dataclass(frozen=True)
class Listing:
    """The images and categories of an annotation file, before its annotations are read.

    Args:
        path: of the file, or what messages call it.
        images: by id.
        categories: names by id.
        annotations: as they are in the file.
        refused: ids of images that cannot be used; their annotations go with them.
        problems: what was left out.
        remarks: assumptions, one line each.
    """

    path: Path
    images: dict[Id, Annotated]
    categories: dict[Id, str]
    annotations: list[Any]
    refused: set[Id]
    problems: list[Problem]
    remarks: list[str]

    @property
    def category_ids(self) -> tuple[Id, ...]:
        """By label."""
        return tuple(in_order(list(self.categories)))

    @property
    def class_names(self) -> tuple[str, ...]:
        """By label."""
        return tuple(self.categories[number] for number in self.category_ids)

    def report(self, entry: str, what: str, fatal: bool = True, skippable: bool = True) -> None:
        """Adds a problem."""
        self.problems.append(Problem(str(self.path), entry, what, fatal, skippable))

    def check(self) -> None:
        """Raises ``DataError`` unless the file has a usable image and a usable category."""
        if not self.images or not self.categories:
            reason = f"; {self.problems[0].entry}: {self.problems[0].what}" if self.problems else ""
            raise DataError(f"{self.path}: no usable {'category' if self.images else 'image'} in it{reason}")


def read_listing(path: Path, content: Mapping[str, Any] | None = None, *, keep_root: bool = False) -> Listing:
    """Reads which images and categories there are.

    Args:
        path: of a JSON file with ``images``, ``annotations`` and ``categories``.
        content: what is in it, if it has been read.
        keep_root: keep a category that has no object and is the supercategory of all others, see ``empty_root``.

    Raises:
        DataError: the file is no such JSON, or has no image or category that can be used.
    """
    content = load(path) if content is None else content
    listing = Listing(path, {}, {}, content["annotations"], set(), [], [])
    categories, _ = by_id(content["categories"], "category", category_problem, listing.report)
    images, refused = read_images(content["images"], listing.report)
    listing.images.update(images)
    listing.refused.update(refused)
    root = None if keep_root else empty_root(content)
    if root is not None:
        name = categories.pop(root)["name"]
        listing.remarks.append(
            f'category {root} ("{name}") is left out: it has no objects and is the supercategory of all others'
        )
    uses = Counter(entry["name"] for entry in categories.values())
    for number, entry in categories.items():
        listing.categories[number] = entry["name"]
        if uses[entry["name"]] > 1:
            what = f'{uses[entry["name"]]} categories have its name "{entry["name"]}"; rename them, or give them one id'
            listing.report(f"category {number}", what, skippable=False)
    if remark := alike(listing.categories):
        listing.remarks.append(remark)
    listing.check()
    return listing


def empty_root(content: Mapping[str, Any]) -> Id | None:
    """Finds Roboflow's category for the project: it has no objects and is the supercategory of all others."""
    categories = [one for one in content["categories"] if isinstance(one, dict) and as_id(one.get("id")) is not None]
    if len(categories) < 2 or len(categories) != len(content["categories"]):
        return None
    for root in categories:
        below = all(one.get("supercategory") == root.get("name") for one in categories if one is not root)
        if below and root.get("supercategory") in (None, "", "none") and not category_problem(root):
            number = as_id(root["id"])
            assert number is not None
            references = (one.get("category_id") for one in content["annotations"] if isinstance(one, dict))
            return None if any(known_id(given, {number: root}) is not None for given in references) else number
    return None


def read_coco(path: Path, *, masks: bool = False, keep_root: bool = False) -> CocoFile:
    """Reads an annotation file; entries that cannot be used are left out and listed in ``problems``.

    The ids of annotations say nothing about their objects: they may be missing, given twice, or of any type. Those of
    images and categories are numbers or text.

    Args:
        path: a JSON file with ``images``, ``annotations`` and ``categories``.
        masks: whether each object must have a segmentation; if false, segmentations are ignored.
        keep_root: see ``read_listing``.

    Raises:
        DataError: the file is no such JSON, or has no image or category that can be used.
    """
    listing = read_listing(path, keep_root=keep_root)
    for number, image in list(listing.images.items()):
        if not image.has_size:
            listing.report(str(image), "its height and width are not in it")
            listing.refused.add(number)
            del listing.images[number]
    listing.check()
    return read_annotations(listing, masks=masks)


def read_annotations(listing: Listing, *, masks: bool) -> CocoFile:
    """Reads the usable annotations of images whose sizes are known.

    A refused object never becomes background. If its box or outline is known, it becomes a crowd region, which is
    neither object nor background; otherwise its image is left out.

    Args:
        listing: of the file.
        masks: whether each object must have a segmentation.
    """
    images = {number: replace(image, annotations=[]) for number, image in listing.images.items()}
    spoiled: set[Id] = set()
    measured, seen = 0, BoxesSeen()
    first_with: dict[Any, Mapping[str, Any]] = {}  # by id
    for place, entry in enumerate(listing.annotations, start=1):
        if not isinstance(entry, dict):
            what = "is not an object with image_id, category_id and bbox"
            listing.report(f"annotation number {place}", what, skippable=False)
            continue
        number = entry.get("id")  # for messages: two objects may share one, or have none
        name = f"annotation {number}" if is_whole(number) else f"annotation number {place}"
        image_id = known_id(entry.get("image_id"), images)
        category = known_id(entry.get("category_id"), listing.categories)
        if image_id is None:
            given = as_id(entry.get("image_id"))
            if known_id(given, dict.fromkeys(listing.refused)) is None:
                # An image that is not listed may have been left out on purpose; an id of another kind is a mistake.
                kinds = {type(number) for number in (*images, *listing.refused)}
                listing.report(name, _unknown("image_id", entry, images), skippable=type(given) in kinds)
            continue
        image = images[image_id]
        entry = {**entry, "image_id": image_id}
        if "bbox" not in entry and (box := around(entry.get("segmentation"))) is not None:
            entry["bbox"] = box
            measured += 1
        if category is not None:
            entry["category_id"] = category
        where = f"{image}, {name}"
        if is_whole(number) and first_with.setdefault(number, entry) is not entry and first_with[number] == entry:
            listing.report(where, f"its id {number} is given twice, for the same object")
            continue
        wrong = _unknown("category_id", entry, listing.categories) if category is None else None
        wrong = wrong or _shape_problem(entry, image, masks)
        clipped: tuple[float, ...] | None = None
        if wrong is None:
            clipped, over = _clip(entry["bbox"], image)
            seen.add(entry, image, over=over is not None)
            if over:
                listing.report(where, over, clipped is None)
            elif masks and _are_apart(entry["bbox"], around(entry.get("segmentation"))):
                wrong, clipped = "its segmentation lies outside its box", None
        if wrong is not None:
            listing.report(where, wrong)
        if clipped is not None:
            image.annotations.append(_complete(_with_outline(entry, masks, where, listing.report)))
        elif category is not None and (region := _region(entry, image, masks)) is not None:
            image.annotations.append(region)
        else:
            spoiled.add(image_id)
    if measured:
        listing.remarks.append(f"{measured} objects have no box in it; the boxes around their polygons are used")
    kept = [image for number, image in images.items() if number not in spoiled]
    if are_shares(kept) or seen.are_corners():
        what = CORNERS if seen.are_corners() else SHARES
        listing.problems.insert(0, Problem(str(listing.path), "", what, skippable=False))
    listing.remarks.extend(remark for remark in (seen.remark(), repeated(kept)) if remark)
    return CocoFile(listing.path, listing.class_names, listing.category_ids, kept, listing.problems, listing.remarks)


def _unknown(key: str, entry: Mapping[str, Any], known: Mapping[Id, Any]) -> str:
    item, given = key.removesuffix("_id"), entry.get(key)
    example = next(iter(known), None)
    kinds = f"; it is text, and those of the file are numbers, e.g. {example}" if isinstance(given, str) else ""
    return f"its {key} {given!r:.60} is not among the file's {item} entries{kinds if is_whole(example) else ''}"


def _with_outline(entry: Annotation, masks: bool, where: str, report: Report) -> Annotation:
    """Drops the segmentation if masks are not used, otherwise its invalid polygons."""
    outline = entry.get("segmentation")
    if not masks:
        return {key: value for key, value in entry.items() if key != "segmentation"}
    if not isinstance(outline, list):
        return entry
    whole = polygons(outline)
    parts = 1 if are_numbers(outline) else len(outline)
    if len(whole) < parts:
        report(where, f"{parts - len(whole)} of its polygons left out: too few points", False)
    return {**entry, "segmentation": whole}


def _region(entry: Annotation, image: Annotated, masks: bool) -> Annotation | None:
    """A crowd region for a refused object: its box, else the box around its polygons; None if neither is known."""
    box = entry.get("bbox")
    clipped = _clip(box, image)[0] if isinstance(box, list) and are_numbers(box) and len(box) == 4 else None
    if clipped is None and (outer := around(entry.get("segmentation"))) is not None:
        clipped = _clip(outer, image)[0]
    if clipped is None:
        return None
    left, top, right, bottom = clipped
    region = {key: entry.get(key) for key in ("id", "image_id", "category_id")}
    region |= {"bbox": [left, top, right - left, bottom - top], "iscrowd": 1, "area": (right - left) * (bottom - top)}
    return region | ({"segmentation": [[left, top, right, top, right, bottom, left, bottom]]} if masks else {})


def load(path: Path) -> dict[str, Any]:
    """The content of an annotation file.

    Raises:
        DataError: it is not JSON, or one without images, annotations and categories.
    """
    try:
        content = parse_json(read_text(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path}: cannot be read as annotations: {reason}") from error
    except ValueError as error:
        raise DataError(f"{path}: is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: is not in COCO's format: expected images, annotations and categories")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise DataError(f'{path}: is not in COCO\'s format: it has no list "{key}"')
    return content


def is_coco(path: Path, format: AnnotationFormat) -> bool:
    """Whether a file is in one of COCO's formats: for objects, or for segments."""
    try:
        content = load(path)
    except DataError:
        return False
    entries = [entry for entry in content["annotations"] if isinstance(entry, dict)]
    panoptic = any("segments_info" in entry for entry in entries)
    if panoptic or format == "panoptic":
        return panoptic and format == "panoptic"
    return not entries or any(entry.keys() & {"bbox", "segmentation"} for entry in entries)


def category_problem(entry: Mapping[str, Any]) -> str | None:
    """What is wrong with an entry of ``categories``, if anything."""
    return None if isinstance(entry.get("name"), str) and entry["name"] else "has no name"


def _shape_problem(entry: Mapping[str, Any], image: Annotated, masks: bool) -> str | None:
    box, segmentation = entry.get("bbox"), entry.get("segmentation")
    if not are_numbers(box) or len(box or ()) != 4:
        return f"its bbox {str(box)[:60]} is not four numbers: left, top, width, height"
    if entry.get("iscrowd") not in (None, 0, 1, False, True):
        return f"its iscrowd {entry['iscrowd']!r:.60} is not 0 or 1"
    area = entry.get("area")
    if area is not None and (not are_numbers([area]) or area < 0):
        return f"its area {area!r:.60} is not a number of pixels"
    if not masks:
        return None
    if segmentation in (None, [], {}, [[]]):
        return "has no segmentation; data.masks false trains boxes only"
    crowd = bool(entry.get("iscrowd"))  # a region to ignore: it may have no pixel
    return segmentation_problem(segmentation, (image.height, image.width), may_be_empty=crowd)


def _are_apart(box: Sequence[float], other: Sequence[float] | None) -> bool:
    """Whether two boxes (left, top, width, height) do not even touch."""
    if other is None:
        return False
    return any(max(box[i], other[i]) > min(box[i] + box[i + 2], other[i] + other[i + 2]) + TOLERANCE for i in (0, 1))


def _clip(box: Sequence[float], image: Annotated) -> tuple[tuple[float, ...] | None, str | None]:
    """The part of a box (left, top, width, height) within the image as corners, if any, and what is wrong with it."""
    corners = inside(box, image.height, image.width)
    shown = f"[{', '.join(f'{value:g}' for value in box)}]"
    if box[2] <= 0 or box[3] <= 0:
        return None, f"its box {shown} has no size"
    if corners[2] <= corners[0] or corners[3] <= corners[1]:
        return None, f"its box {shown} lies outside the image of {image.width} x {image.height}"
    reaches = max(-box[0], -box[1], box[0] + box[2] - image.width, box[1] + box[3] - image.height)
    over = reaches > TOLERANCE
    return corners, f"its box {shown} reaches outside the image of {image.width} x {image.height}" if over else None


def inside(box: Sequence[float], height: int, width: int) -> tuple[float, float, float, float]:
    """Corners x1 y1 x2 y2 of a COCO box (left, top, width, height), clipped to the image."""
    left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
    return (
        min(max(left, 0.0), width),
        min(max(top, 0.0), height),
        min(max(right, 0.0), width),
        min(max(bottom, 0.0), height),
    )


def _complete(entry: dict[str, Any]) -> Annotation:
    """With the two fields that the evaluation needs and some tools leave out; an area of 0 is none."""
    given = {key: value for key, value in entry.items() if value is not None and (key != "area" or value > 0)}
    return {"iscrowd": 0, "area": entry["bbox"][2] * entry["bbox"][3], **given}


def find_annotations(
    root: Path, split: Split, wanted: str | None = None, format: AnnotationFormat = "instances"
) -> Path | None:
    """The annotation file of a split: ``annotations/instances_train*.json``, ``train/_annotations.coco.json``, ...

    Args:
        root: the folder of the data set.
        split: which one.
        wanted: its path relative to the root, if it has none of these names.
        format: COCO's for objects, or for segments: then it is ``annotations/panoptic_train*.json``.

    Raises:
        DataError: the wanted file is not there, or several could be meant.
    """
    check_exists(root)
    if wanted is not None:
        if not (root / wanted).is_file():
            raise DataError(f"{root / wanted}: no such annotation file")
        return root / wanted
    found = usual_files(root, split, format)
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(root)) for path in found)
        raise DataError(f"{root}: several annotation files for {split}: {names}; choose by data.{split}_annotations")
    return found[0] if found else None


def usual_files(root: Path, split: Split, format: AnnotationFormat) -> list[Path]:
    """The annotation files of a split with the most common name that exists."""
    patterns = _patterns if format == "instances" else _panoptic_patterns
    each = (sorted(root.glob(pattern)) for name in SYNONYMS[split] for pattern in patterns(name))
    return next((files for files in each if files), [])


def _patterns(name: str) -> Iterator[str]:
    for suffix in ("", "20[0-9][0-9]"):  # as COCO's years
        yield f"annotations/instances_{name}{suffix}.json"
        yield f"annotations/{name}{suffix}.json"
        yield f"{name}{suffix}.json"
    yield from (f"annotations/lvis_v*_{name}.json", f"lvis_v*_{name}.json")
    yield from (f"{name}/_annotations.coco.json", f"{name}/annotations.json", f"{name}/{name}.json")


def _panoptic_patterns(name: str) -> Iterator[str]:
    for suffix in ("", "20[0-9][0-9]"):
        yield from (f"annotations/panoptic_{name}{suffix}.json", f"panoptic_{name}{suffix}.json")
    for folder in ("", "annotations/", "gtFine/"):
        yield from (f"{folder}ade20k_panoptic_{name}.json", f"{folder}cityscapes_panoptic_{name}.json")


@dataclass(frozen=True)
class CheckedCoco:
    """One split of a detection data set whose annotations have been read and whose images were looked for.

    Args:
        coco: the annotations; images that are not there are left out.
        images: where the files are.
        problems: all that was found, with those of ``coco``.
    """

    coco: CocoFile
    images: ImageFiles
    problems: list[Problem]

    def objects(self) -> dict[str, int]:
        """Number of objects by class name, crowd regions left out."""
        label_of = self.coco.label_of()
        found = (a for image in self.coco.images for a in image.annotations if not a["iscrowd"])
        counts = Counter(label_of[a["category_id"]] for a in found)
        return {name: counts[label] for label, name in enumerate(self.coco.class_names)}


def check_coco(
    root: Path,
    annotations: Path,
    *,
    masks: bool,
    images: str | None = None,
    written: Written | None = None,
    keep_root: bool = False,
) -> CheckedCoco:
    """Reads a split's annotations, looks for its images, and compares their sizes.

    Args:
        root: the folder of the data set.
        annotations: the annotation file.
        masks: whether each object must have a segmentation.
        images: the folder or tar file of the images, relative to the root; default: looked for.
        written: what is in the file, if it has been read.
        keep_root: see ``read_listing``.

    Raises:
        DataError: the annotations cannot be read at all, or no image is found.
    """
    written = Written(load(annotations)) if written is None else written
    listing = read_listing(annotations, written.content, keep_root=keep_root)
    listing.remarks.extend(written.remarks)
    for number, image in list(listing.images.items()):
        if what := written.refused.get(image.file_name):
            listing.report(str(image), what)
            listing.refused.add(number)
            del listing.images[number]
    listing.check()
    files = find_images(root, annotations, [image.file_name for image in listing.images.values()], images)
    others = other_splits(annotations)
    options: dict[str, Any] = {"other_splits": others, "measured": written.measured}
    located = locate(listing.images, files, listing.report, listing.remarks, **options)
    listing.refused.update(listing.images.keys() - located.keys())
    listing.images.clear()
    listing.images.update(located)
    coco = read_annotations(listing, masks=masks)
    return CheckedCoco(coco, files, coco.problems)


def check_images(checked: CheckedCoco) -> list[Problem]:
    """Decodes every image: the broken ones, and those of another size than their annotations are for."""
    problems = []
    for entry in checked.coco.images:
        try:
            read_image(checked.images, entry)
        except ImageError as error:
            name = f"image {entry.image_id} ({entry.file_name})"
            problems.append(Problem(str(checked.coco.path), name, str(error)))
    return problems
