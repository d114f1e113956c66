"""``focalnet check-data``: checks whether a detection or segmentation data set can be trained on."""

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
    """The problems in one split of a data set."""

    name: str
    summary: str
    problems: Sequence[Problem]


def check_data(
    root: Annotated[
        Path,
        typer.Argument(help="A folder with COCO-format annotations (or one annotation file), or with label maps."),
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
        bool | None, typer.Option(help="Label 0 is no class, and classes count from 1.", show_default=False)
    ] = None,
    label_map: Annotated[
        str | None, typer.Option(help='Replace labels in label maps, as data.label_map does: "{255: 1}".')
    ] = None,
) -> None:
    """Reports every problem in a data set.

    Prints one line per problem, and exits with code 2 if there is any. COCO format: broken JSON, missing images,
    duplicate ids, unknown categories, boxes that are empty or outside their image, invalid segmentations, panoptic PNG
    files that do not match. Label maps: images without masks, masks without images, sizes that differ, labels that are
    not classes, colors in place of labels, a single class, broken files. Training runs the same check before it starts.
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
            label_map=None if label_map is None else _parse_label_map(label_map),
        )
        reports = _check_label_maps(data, decode=decode)
    num_problems = 0
    for report in reports:
        for problem in report.problems:
            say(problem)
        num_problems += len(report.problems)
        say(f"{report.name}: {report.summary}", err=True)
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


def _annotation_files(root: Path) -> list[Path]:
    """The annotation files of a COCO-format data set; empty for other formats."""
    from focalnet.data.formats.coco import find_annotations

    if root.is_file():
        return [root] if root.suffix != ".tar" else []
    splits: tuple[Split, ...] = ("train", "val", "test")
    formats: tuple[AnnotationFormat, ...] = ("instances", "panoptic")
    files = (find_annotations(root, split, format=format) for format in formats for split in splits)
    return [file for file in files if file is not None]


def _check_coco(
    root: Path, files: Sequence[Path], images: str | None, panoptic_maps: str | None, *, masks: bool, decode: bool
) -> Iterator[Report]:
    from focalnet.data.formats.coco import check_coco, check_images
    from focalnet.data.formats.coco_panoptic import check_panoptic, is_panoptic, only_one_stuff_class
    from focalnet.data.formats.problems import Problem

    folder = root if root.is_dir() else _data_folder(root)
    training = True  # until the first panoptic file: it is the training split if there is one
    for file in files:
        if is_panoptic(file):
            checked = check_panoptic(folder, file, images=images, maps=panoptic_maps, decode=decode)
            segments = ", ".join(f"{count} {name}" for name, count in checked.segments().items() if count)
            problems = [*checked.problems]
            if training and (reason := only_one_stuff_class(checked.annotated)):
                problems.append(Problem(str(file), "", reason))
            training = False
            yield Report(str(file), f"{len(checked.annotated.images)} images; {segments}", problems)
            continue
        split = check_coco(folder, file, masks=masks, images=images)
        problems = [*split.problems, *(check_images(split) if decode else [])]
        objects = ", ".join(f"{count} {name}" for name, count in split.objects().items())
        yield Report(str(file), f"{len(split.coco.images)} images; {objects}", problems)


def _data_folder(file: Path) -> Path:
    """The folder of the data set that an annotation file belongs to."""
    return file.parent.parent if file.parent.name == "annotations" else file.parent


def _check_label_maps(data: SemanticData, *, decode: bool) -> Iterator[Report]:
    from focalnet.data.formats.label_maps import check_masks, find_pairs, remarks, too_few_classes
    from focalnet.data.formats.problems import Problem

    splits: tuple[Split | None, ...] = ("train", "val", "test")
    pairs_by_split = {split: find_pairs(data.root, split, data.layouts) for split in splits}
    if not any(pairs_by_split.values()):
        pairs_by_split = {None: find_pairs(data.root, None, data.layouts)}
    if not any(pairs_by_split.values()):
        raise DataError(
            f"{data.root}: holds neither annotation files, e.g. annotations/instances_train.json, nor folders of "
            "images and label maps, e.g. images/train and masks/train"
        )
    for split, pairs in pairs_by_split.items():
        if pairs is None:
            continue
        rule, names = data.rule(pairs)
        checked = check_masks(pairs, rule, len(names) or None, decode=decode)
        shares = 100 * checked.pixels / max(checked.pixels.sum(), 1)
        named = dict(enumerate(names)) | {len(shares) - 1: "ignored"}
        classes = ", ".join(f"{share:.1f} % {named.get(i, f'class {i}')}" for i, share in enumerate(shares) if share)
        problems, training = [*checked.problems], split in ("train", None)
        if training and (reason := too_few_classes(checked, rule, names)):
            problems.append(Problem(pairs.name, "", reason))
        listed = bool(names) or not training  # other splits may lack classes
        for remark in remarks(checked, rule, named=listed, by_default=data.ignores_by_default):
            say(f"warning: {remark}", err=True)
        yield Report(pairs.name, f"{len(checked.pairs)} images; {classes}", problems)
