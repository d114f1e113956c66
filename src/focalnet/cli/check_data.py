"""``focalnet check-data``: is a detection or segmentation data set fit to train on?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from focalnet.cli.terminal import say
from focalnet.errors import ConfigError, DataError

if TYPE_CHECKING:
    from focalnet.data import SemanticData
    from focalnet.data.formats.coco import AnnotationFormat
    from focalnet.data.formats.problems import Problem
    from focalnet.data.readers.collection import Split


class Report(NamedTuple):
    """What was found in a split of a data set."""

    name: str
    summary: str
    problems: Sequence[Problem]


def check_data(
    root: Annotated[
        Path,
        typer.Argument(help="The folder of a data set: COCO-format annotations (or one such file), or label maps."),
    ],
    images: Annotated[
        str | None,
        typer.Option(help="The folder or tar file of the pictures, relative to ROOT; default: looked for."),
    ] = None,
    masks: Annotated[bool, typer.Option("--masks", help="COCO format: every object must have a segmentation.")] = False,
    decode: Annotated[bool, typer.Option("--decode", help="Also decode every picture, and compare its size.")] = False,
    label_maps: Annotated[
        str | None, typer.Option(help="The folder of label maps, or of panoptic PNG files, relative to ROOT.")
    ] = None,
    mask_suffix: Annotated[str, typer.Option(help='What masks have behind their pictures\' names, e.g. "_mask".')] = "",
    class_names: Annotated[str | None, typer.Option(help="A file that lists the classes of label maps.")] = None,
    ignore_index: Annotated[int | None, typer.Option(help="This number in a label map is no class.")] = None,
    reduce_zero_label: Annotated[
        bool | None, typer.Option(help="0 in a label map is no class, and classes count from 1.", show_default=False)
    ] = None,
    label_map: Annotated[
        str | None, typer.Option(help='Other numbers for some of those in label maps, as data.label_map: "{255: 1}".')
    ] = None,
) -> None:
    """Names everything that is wrong with a data set.

    Of objects or segments, a line each; exit code 2 if there is anything. COCO format: broken JSON, missing pictures,
    ids given twice, unknown categories, boxes without size or outside their picture, broken segmentations, panoptic PNG
    files that do not fit. Label maps: pictures without masks and masks without pictures, sizes that differ, numbers of
    no class, colours in place of numbers, one class only, broken files. Training makes the same check before it starts.
    """
    if files := _annotation_files(root):
        reports = _check_coco(root, files, images, label_maps, masks=masks, decode=decode)
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
            label_map=None if label_map is None else _numbers_by_number(label_map),
        )
        reports = _check_label_maps(data, decode=decode)
    found = 0
    for report in reports:
        for problem in report.problems:
            say(problem)
        found += len(report.problems)
        say(f"{report.name}: {report.summary}", err=True)
    if found:
        raise DataError(f"{root}: {found} {'problem' if found == 1 else 'problems'}, listed above")


def _numbers_by_number(text: str) -> dict[int, int]:
    """``{255: 1}`` as in a recipe."""
    from focalnet.reading import parse_yaml

    try:
        content = parse_yaml(text)
    except ValueError:
        content = None
    if not isinstance(content, dict) or not all(type(n) is int for pair in content.items() for n in pair):
        raise ConfigError(f'--label-map {text!r} must be numbers for numbers, e.g. "{{255: 1}}"')
    return content


def _annotation_files(root: Path) -> list[Path]:
    """Of a COCO-format data set; none where it is another."""
    from focalnet.data.formats.coco import find_annotations

    if root.is_file():
        return [root] if root.suffix != ".tar" else []
    splits: tuple[Split, ...] = ("train", "val", "test")
    formats: tuple[AnnotationFormat, ...] = ("instances", "panoptic")
    files = (find_annotations(root, split, format=format) for format in formats for split in splits)
    return [file for file in files if file is not None]


def _check_coco(
    root: Path, files: Sequence[Path], images: str | None, maps: str | None, *, masks: bool, decode: bool
) -> Iterator[Report]:
    from focalnet.data.formats.coco import check_coco, check_images
    from focalnet.data.formats.coco_panoptic import check_panoptic, is_panoptic, only_one_stuff_class
    from focalnet.data.formats.problems import Problem

    folder = root if root.is_dir() else _above(root)
    training = True  # the first panoptic file is that of the training split, if there is one
    for file in files:
        if is_panoptic(file):
            checked = check_panoptic(folder, file, images=images, maps=maps, decode=decode)
            segments = ", ".join(f"{count} {name}" for name, count in checked.segments().items() if count)
            problems = [*checked.problems]
            if training and (why := only_one_stuff_class(checked.annotated)):
                problems.append(Problem(str(file), "", why))
            training = False
            yield Report(str(file), f"{len(checked.annotated.images)} images; {segments}", problems)
            continue
        split = check_coco(folder, file, masks=masks, images=images)
        problems = [*split.problems, *(check_images(split) if decode else [])]
        objects = ", ".join(f"{count} {name}" for name, count in split.objects().items())
        yield Report(str(file), f"{len(split.coco.images)} images; {objects}", problems)


def _above(file: Path) -> Path:
    """The folder of the data set that an annotation file is of."""
    return file.parent.parent if file.parent.name == "annotations" else file.parent


def _check_label_maps(data: SemanticData, *, decode: bool) -> Iterator[Report]:
    from focalnet.data.formats.label_maps import check_masks, find_pairs, remarks, too_few_classes
    from focalnet.data.formats.problems import Problem

    splits: tuple[Split | None, ...] = ("train", "val", "test")
    found = {split: find_pairs(data.root, split, data.layouts) for split in splits}
    if not any(found.values()):
        found = {None: find_pairs(data.root, None, data.layouts)}
    if not any(found.values()):
        raise DataError(
            f"{data.root}: neither annotation files there, e.g. annotations/instances_train.json, nor folders of "
            "pictures and label maps, e.g. images/train and masks/train"
        )
    for split, pairs in found.items():
        if pairs is None:
            continue
        rule, names = data.rule(pairs)
        checked = check_masks(pairs, rule, len(names) or None, decode=decode)
        shares = 100 * checked.pixels / max(checked.pixels.sum(), 1)
        named = dict(enumerate(names)) | {len(shares) - 1: "ignored"}
        classes = ", ".join(f"{share:.1f} % {named.get(i, f'class {i}')}" for i, share in enumerate(shares) if share)
        problems, training = [*checked.problems], split in ("train", None)
        if training and (why := too_few_classes(checked, rule, names)):
            problems.append(Problem(pairs.name, "", why))
        listed = bool(names) or not training  # another split may well lack classes
        for remark in remarks(checked, rule, named=listed, by_default=data.ignores_by_default):
            say(f"warning: {remark}", err=True)
        yield Report(pairs.name, f"{len(checked.pairs)} images; {classes}", problems)
