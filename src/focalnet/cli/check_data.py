"""``focalnet check-data``: checks whether a data set can be trained on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_args

import typer

from focalnet.cli.terminal import say
from focalnet.errors import ConfigError, DataError, ImageError

if TYPE_CHECKING:
    from focalnet.data import MultiLabelData, SemanticData
    from focalnet.data.formats.coco import AnnotationFormat
    from focalnet.data.formats.image_entries import Annotated as AnnotatedImage
    from focalnet.data.formats.problems import Problem
    from focalnet.data.formats.sets import Annotations
    from focalnet.data.formats.shared_images import SharedImages
    from focalnet.data.readers.collection import Split
    from focalnet.data.readers.image_files import ImageFiles
    from focalnet.data.readers.source import Source


class Report(NamedTuple):
    """The problems in one split of a data set."""

    name: str
    summary: str
    problems: Sequence[Problem]
    remarks: Sequence[str] = ()


def check_data(
    root: Annotated[
        Path,
        typer.Argument(
            help="A folder with annotations (or an annotation file), with label maps, with class folders, or with "
            "tables of labels (or one such CSV file)."
        ),
    ],
    images: Annotated[
        str | None,
        typer.Option(help="The folder or tar file of the images, relative to ROOT; default: found automatically."),
    ] = None,
    masks: Annotated[bool, typer.Option("--masks", help="COCO format: every object needs a segmentation.")] = False,
    decode: Annotated[bool, typer.Option("--decode", help="Also decode every image and compare its size.")] = False,
    label_maps: Annotated[
        str | None, typer.Option(help="The folder of label maps, or of panoptic PNG files, relative to ROOT.")
    ] = None,
    mask_suffix: Annotated[str, typer.Option(help='Suffix that mask files add to the image name, e.g. "_mask".')] = "",
    class_names: Annotated[str | None, typer.Option(help="A file that lists the classes of label maps.")] = None,
    ignore_index: Annotated[int | None, typer.Option(help="Label of pixels that belong to no class.")] = None,
    reduce_zero_label: Annotated[
        bool | None, typer.Option(help="Label 0 is not a class, and classes count from 1.", show_default=False)
    ] = None,
    label_map: Annotated[
        str | None, typer.Option(help='Replace labels in label maps, as data.label_map does: "{255: 1}".')
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Tables of labels: the column with the files of the images.")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Tables of labels: the column with all labels of an image.")
    ] = None,
    class_columns: Annotated[
        str | None, typer.Option(help='Tables of labels: the columns of 0 and 1, one for each class: "[cat, dog]".')
    ] = None,
    label_delimiter: Annotated[
        str | None, typer.Option(help='Tables of labels: what is between two labels in one cell, e.g. "|".')
    ] = None,
    class_map: Annotated[
        Path | None, typer.Option(help="Tables of labels: a file that lists the classes, as data.class_map does.")
    ] = None,
) -> None:
    """Reports every problem in a data set, and what training would read of it.

    Prints one line per problem, with a count where there are many of a kind, and exits with code 2 if there is any.
    Objects and segments: broken JSON, missing images, duplicate ids, unknown categories, boxes that are empty or
    outside their image, sizes that differ, invalid segmentations, panoptic PNG files that do not match. Label maps:
    images without masks, masks without images, sizes that differ, labels that are not classes, colors in place of
    labels, a single class, broken files. Class folders: with --decode, broken files. Tables of labels: missing images,
    images in two rows, unknown classes and columns, cells that are not labels. Training runs the same check before it
    starts. Images that two splits share are named in a warning: files of the same bytes, and with --decode images that
    were compressed or scaled anew.
    """
    from focalnet.data.formats.shared_images import SharedImages

    shared = SharedImages(decode=decode)
    columns = {
        "image_column": image_column,
        "label_column": label_column,
        "class_columns": None if class_columns is None else _parse_names(class_columns),
        "label_delimiter": label_delimiter,
        "class_map": class_map,
    }
    columns = {name: value for name, value in columns.items() if value is not None}
    maps = label_maps or mask_suffix or label_map or class_names
    if not columns and (found := _annotations(root)):
        reports = _check_annotations(root, found, images, label_maps, shared, masks=masks, decode=decode)
    elif not maps and (tables := _label_tables(root, images, columns)):
        reports = _check_tables(tables, shared, decode=decode)
    else:
        from focalnet.data import SemanticData

        data = SemanticData(
            root,
            images=images,
            masks=label_maps,
            mask_suffix=mask_suffix,
            class_names=class_names,
            ignore_index=ignore_index,
            reduce_zero_label=reduce_zero_label,
            label_map=None if label_map is None else _parse_label_map(label_map),
        )
        given = images or label_maps or mask_suffix or label_map
        classes = not given and _has_class_folders(data)
        reports = (
            _check_classes(root, shared, decode=decode) if classes else _check_label_maps(data, shared, decode=decode)
        )
    from focalnet.data.formats.problems import by_kind

    num_problems = 0
    for report in reports:
        for line in by_kind(report.problems):
            say(line)
        num_problems += len(report.problems)
        for remark in report.remarks:
            say(f"warning: {report.name}: {remark}", err=True)
        say(f"{report.name}: {report.summary}", err=True)
    for remark in shared.remarks():
        say(f"warning: {remark}", err=True)
    if num_problems:
        unit = "problem" if num_problems == 1 else "problems"
        raise DataError(f"{root}: {num_problems} {unit}, listed above")


def _parse_label_map(text: str) -> dict[int, int]:
    """Parses ``{255: 1}``, as recipes write it."""
    from focalnet.reading import parse_yaml

    try:
        content = parse_yaml(text)
    except ValueError:
        content = None
    if not isinstance(content, dict) or not all(type(n) is int for pair in content.items() for n in pair):
        raise ConfigError(f'--label-map {text!r} must map labels to labels, e.g. "{{255: 1}}"')
    return content


def _parse_names(text: str) -> list[str]:
    """Parses ``[cat, dog]``, as recipes write it."""
    from focalnet.reading import parse_yaml

    try:
        content = parse_yaml(text)
    except ValueError:
        content = None
    if not isinstance(content, list) or not all(isinstance(one, str) for one in content):
        raise ConfigError(f'--class-columns {text!r} must list names of columns, e.g. "[cat, dog]"')
    return content


def _label_tables(root: Path, images: str | None, columns: Mapping[str, Any]) -> MultiLabelData | None:
    """The data set of a folder with tables of labels, or of one such table; None for other data sets.

    Pairs of images and label maps, and class folders, come first, unless columns are given.
    """
    from focalnet.data import MultiLabelData, SemanticData

    if root.suffix == ".csv" and root.is_file():
        alone: dict[str, Any] = dict.fromkeys(("train_labels", "val_labels", "test_labels"), root.name)
        return MultiLabelData(root.parent, images=images, **alone, **columns)
    data = MultiLabelData(root, images=images, **columns)
    if columns:
        return data
    is_other = not root.is_dir() or not data.found() or SemanticData(root).found() or _are_classes(root)
    return None if is_other else data


def _are_classes(root: Path) -> bool:
    """Whether images lie in two class folders or more."""
    from focalnet.data.images import SUFFIXES
    from focalnet.data.readers.classes import is_like_split
    from focalnet.data.readers.folder import list_folders

    names: set[str] = set()
    for folder in list_folders(root):
        for path in folder.rglob("*"):
            name = path.parent.name
            if path.suffix.lower() in SUFFIXES and not is_like_split(name) and name.casefold() not in NO_CLASSES:
                names.add(name)
            if len(names) > 1:
                return True
    return False


def _annotations(root: Path) -> list[Annotations]:
    """The annotations of a data set, of objects or segments; none for other data sets."""
    from focalnet.data.formats.sets import Annotations, find_set, find_split

    if root.is_file():
        found = find_set(root)
        return (
            [Annotations(root, True, found)]
            if found
            else [Annotations(root)]
            if root.suffix not in (".tar", ".csv")
            else []
        )
    splits: tuple[Split, ...] = ("train", "val", "test")
    formats: tuple[AnnotationFormat, ...] = ("instances", "panoptic")
    each = [find_split(root, split, format=format) for format in formats for split in splits]
    return list({(one.path, one.split): one for one in each if one is not None}.values())


def _check_annotations(
    root: Path,
    found: Sequence[Annotations],
    images: str | None,
    panoptic_maps: str | None,
    shared: SharedImages,
    *,
    masks: bool,
    decode: bool,
) -> Iterator[Report]:
    from focalnet.data.formats.coco import check_coco, check_images
    from focalnet.data.formats.coco_panoptic import check_panoptic, is_panoptic, only_one_stuff_class
    from focalnet.data.formats.problems import Problem
    from focalnet.data.formats.sets import root_has_objects

    folder = root if root.is_dir() else _data_folder(root)
    training = True  # until the first panoptic file: it is the training split if there is one
    for one in found:
        if one.set is None and is_panoptic(one.path):
            checked = check_panoptic(folder, one.path, images=images, maps=panoptic_maps, decode=decode)
            problems = [*checked.problems]
            if training and (reason := only_one_stuff_class(checked.annotated)):
                problems.append(Problem(str(one.path), "", reason))
            training = False
            segments = {name: count for name, count in checked.segments().items() if count}
            summary = _summary(checked.annotated.images, segments)
            _share(shared, str(one.path), checked.images, [image.file_name for image in checked.annotated.images])
            yield Report(str(one.path), summary, problems, checked.annotated.remarks)
            continue
        written = one.read()
        split = check_coco(
            folder if one.set is None else one.set.root,
            one.path,
            masks=masks,
            images=images if images is not None or one.set is None else "",
            written=written,
            keep_root=root_has_objects(written.content, found),
        )
        problems = [*split.problems, *(check_images(split) if decode else [])]
        summary = _summary(split.coco.images, split.objects()) + f"; {_outlines(written.content)}"
        remarks = [*split.coco.remarks]
        if one.whole and root.is_dir():
            remarks.append("has no splits: training holds out 20 % of its images for validation (data.holdout)")
        name = str(one.path) if one.set is None else f"{one.path} ({one.set.format})"
        if one.split and sum(other.path == one.path for other in found) > 1:  # a file for all splits
            name += f": {one.split}"
        _share(shared, name, split.images, [image.file_name for image in split.coco.images])
        yield Report(name, summary, problems, remarks)


def _share(shared: SharedImages, split: str, files: ImageFiles, names: Iterable[str]) -> None:
    """Adds the images of a split to those to compare."""
    shared.add(split, [(files.path(name), partial(files.content, name)) for name in names])


MOST_CLASSES = 20  # that a line lists
#: Names of folders that are not classes.
NO_CLASSES = frozenset({"images", "masks", "labels", "annotations", "jpegimages", "segmentationclass", "imagesets"})


def _summary(images: Sequence[AnnotatedImage], counts: Mapping[str, int]) -> str:
    """How many images there are, and objects by class; and the sizes of the images."""
    listed = dict(counts) if len(counts) <= MOST_CLASSES else dict(Counter(counts).most_common(MOST_CLASSES))
    classes = ", ".join(f"{count} {name}" for name, count in listed.items())
    if len(counts) > len(listed):
        classes += f" and {len(counts) - len(listed)} more classes"
    return f"{len(images)} images; {classes}" + _sizes([(image.width, image.height) for image in images])


def _sizes(sizes: Sequence[tuple[int, int]]) -> str:
    """The smallest and the largest size."""
    if not sizes:
        return ""
    smallest, largest = (f"{w} x {h}" for w, h in (min(sizes, key=math.prod), max(sizes, key=math.prod)))
    return f"; {smallest} pixels" if len(set(sizes)) == 1 else f"; {smallest} to {largest} pixels"


def _outlines(content: Mapping[str, Any]) -> str:
    from focalnet.data.formats.sets import has_outlines

    objects = [one for one in content["annotations"] if isinstance(one, dict)]
    count = sum(has_outlines({"annotations": [one]}) for one in objects)
    return f"outlines of {count} of {len(objects)} objects" if count else "boxes only"


def _has_class_folders(data: SemanticData) -> bool:
    """Whether a data set is one for classification."""
    from focalnet.data.formats.pairs import suggest
    from focalnet.data.readers.collection import detect

    if data.found() or (data.root.is_dir() and suggest(data.root)):
        return False
    try:
        if detect(data.root) != "folder":
            return data.root.is_dir()
    except DataError:
        return False
    return not NO_CLASSES & {path.name.casefold() for path in data.root.iterdir() if path.is_dir()}


def _check_classes(root: Path, shared: SharedImages, *, decode: bool) -> Iterator[Report]:
    """Classes are folders, or what archives say."""
    from focalnet.data.formats.problems import Problem
    from focalnet.data.readers.collection import Collection, Split, detect
    from focalnet.data.readers.source import other_classes

    format = detect(root)
    collection = Collection(root, format, wanted={})
    if format == "wds":
        raise DataError(f"{root}: WebDataset shards are checked while they are read; train with data.class_map")
    splits = [split for split in get_args(Split) if collection.has(split)] or [None]
    first: Source | None = None
    for split in splits:
        source = collection.open(split or "train")
        first = first or source
        counts = Counter(source.class_names[label] for label in source.labels.tolist())
        problems, sizes = [], []
        for index in range(len(source)) if decode else ():
            try:
                sizes.append(source.read(index).size)
            except ImageError as error:
                problems.append(Problem(source.name, "", str(error)))
        if split in ("train", None) and len(counts) < 2:
            problems.append(Problem(source.name, "", f"all images are of one class: {', '.join(counts)}"))
        if why := other_classes(first, source):
            problems.append(Problem(source.name, "", why))
        classes = ", ".join(f"{count} {name}" for name, count in counts.most_common(MOST_CLASSES))
        more = f" and {len(counts) - MOST_CLASSES} more classes" if len(counts) > MOST_CLASSES else ""
        remarks = []
        if collection.holds_only_training:
            remarks.append("is all there is: training holds out 20 % of each class to validate on (data.holdout)")
        shared.add(source.name, [(source.path(i), partial(source.content, i)) for i in range(len(source))])
        yield Report(source.name, f"{len(source)} images; {classes}{more}{_sizes(sizes)}", problems, remarks)


def _check_tables(data: MultiLabelData, shared: SharedImages, *, decode: bool) -> Iterator[Report]:
    from focalnet.data.formats.problems import Problem
    from focalnet.data.images import read
    from focalnet.data.modules.table_check import check_tables

    for checked in check_tables(data):
        problems, sizes = [*checked.problems], []
        images = checked.images
        for name in checked.names if decode else ():
            assert images is not None  # names are those of its files
            try:
                sizes.append(read(images.content(name), images.path(name)).size)
            except (ImageError, OSError) as error:
                problems.append(Problem(str(checked.path), "", str(error)))
        counts = Counter({name: 0 for name in checked.class_names})
        counts.update(name for labels in checked.labels.values() for name in labels)
        listed = [*counts.items()] if len(counts) <= MOST_CLASSES else counts.most_common(MOST_CLASSES)
        classes = ", ".join(f"{count} {name}" for name, count in listed)
        more = f" and {len(counts) - MOST_CLASSES} more classes" if len(counts) > MOST_CLASSES else ""
        without = sum(not labels for labels in checked.labels.values())
        no_class = f", {without} without a class" if without else ""
        summary = f"{len(checked.labels)} images; {classes}{more}{no_class}{_sizes(sizes)}"
        if checked.images is None:
            summary = "cannot be used as it is"
        else:
            _share(shared, str(checked.path), checked.images, checked.names)
        yield Report(str(checked.path), summary, problems, checked.remarks)


def _data_folder(file: Path) -> Path:
    """The folder of the data set that an annotation file belongs to."""
    return file.parent.parent if file.parent.name == "annotations" else file.parent


def _unknown_json(root: Path) -> str | None:
    """Why the first JSON file of a data set is not an annotation file; None if there is none."""
    from focalnet.data.formats.coco import load

    for file in (*sorted(root.glob("*.json")), *sorted(root.glob("annotations/*.json"))):
        try:
            load(file)
        except DataError as error:
            return f"{root}: has no annotation file of a known format; {error}"
    return None


def _check_label_maps(data: SemanticData, shared: SharedImages, *, decode: bool) -> Iterator[Report]:
    from focalnet.data.formats.label_maps import check_masks, remarks
    from focalnet.data.formats.pairs import suggest
    from focalnet.data.formats.problems import Problem

    found = data.found()
    if not found:
        there = suggest(data.root) if data.root.is_dir() else ""
        if not there and (other := _unknown_json(data.root)):
            raise DataError(other)
        raise DataError(
            f"{data.root}: holds neither annotation files, e.g. annotations/instances_train.json, nor folders of "
            "images and label maps, e.g. images/train and masks/train"
            if not there
            else f"{data.root}: images and label maps are not where they usually are: {there} names them"
        )
    for split, pairs in found.items():
        rule, names = data.rule(pairs)
        checked = check_masks(pairs, rule, len(names) or None, decode=decode)
        shares = 100 * checked.pixels / max(checked.pixels.sum(), 1)
        named = dict(enumerate(names)) | {len(shares) - 1: "ignored"}
        classes = ", ".join(f"{share:.1f} % {named.get(i, f'class {i}')}" for i, share in enumerate(shares) if share)
        problems, training = [*checked.problems], split in ("train", None)
        if training and (why := data.problem(checked, rule, names, named=bool(names))):
            problems.append(Problem(pairs.name, "", why))
        listed = bool(names) or not training  # other splits may lack classes
        for remark in remarks(checked, rule, named=listed, by_default=data.ignores_by_default):
            say(f"warning: {remark}", err=True)
        alone = ["is all there is: training holds out 20 % of its images to validate on (data.holdout)"]
        only_training = training and len(found) == 1
        _share(shared, pairs.name, checked.pairs.images, [image for image, _ in checked.pairs.names])
        yield Report(pairs.name, f"{len(checked.pairs)} images; {classes}", problems, alone if only_training else [])
