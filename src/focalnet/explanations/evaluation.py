"""Evaluates heat maps on a data set: every method, controls too, by every measure, with intervals.

Values of each image are appended to ``values.jsonl`` as soon as they are known, so that an interrupted evaluation
continues where it stopped; tables are made of that file.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from focalnet import files
from focalnet.errors import ConfigError, DataError, FocalNetError, did_you_mean
from focalnet.explanations import measures
from focalnet.explanations.attribution import (
    CONTROLS,
    check_method,
    default_blocks,
    methods_of,
    saliency,
)
from focalnet.explanations.features import lacks_modulation, last_stride
from focalnet.explanations.preparing import Box, evaluating, stride_of
from focalnet.explanations.recording import block_names
from focalnet.explanations.subjects import Subjects, find_subjects, output_of
from focalnet.results.base import class_name

SANE = 16  # images that the measures of sanity look at: they need many maps of each
GROUPS = 4  # steps of the cascading randomization
SHIFTS = 4  # samples of max-sensitivity
ROAD = frozenset({"road_morf", "road_lerf", "road"})  # of the same passes
LOCALIZATION = frozenset({"pointing_game", "energy_inside", "contrast"})  # of what objects and segments have
SANITY = frozenset({"mprt", "random_logit", "max_sensitivity"})


class Column(NamedTuple):
    """A measure in the table: its title, and whether higher is better (None: it has no better end)."""

    title: str
    higher_is_better: bool | None


COLUMNS: Mapping[str, Column] = {
    "deletion": Column("deletion", False),
    "insertion": Column("insertion", True),
    "deletion_patches": Column("deletion, patches", False),
    "insertion_patches": Column("insertion, patches", True),
    "road_morf": Column("ROAD MoRF", False),
    "road_lerf": Column("ROAD LeRF", True),
    "road": Column("ROAD, (LeRF - MoRF) / 2", True),
    "average_drop": Column("average drop", False),
    "increase": Column("increase", True),
    "average_gain": Column("average gain", True),
    "pointing_game": Column("pointing game", True),
    "energy_inside": Column("energy inside", True),
    "contrast": Column("inside against outside", True),
    "gini": Column("Gini", None),
    "entropy": Column("entropy", None),
    "mprt": Column("MPRT", False),
    "random_logit": Column("random logit", False),
    "max_sensitivity": Column("max-sensitivity", None),
}
"""Every measure. Those without a better end describe a map: a constant one is the most stable, a single pixel the
simplest."""


class Example(NamedTuple):
    """An image, what is explained of it, and the maps by method, which cover a region of the image."""

    title: str
    image: Image.Image
    maps: Mapping[str, Tensor]
    region: Box


@dataclass(frozen=True)
class Cell:
    """The mean of a measure over images, with its 95 % bootstrap interval and the number of images."""

    mean: float
    low: float
    high: float
    images: int


@dataclass(frozen=True)
class Evaluation:
    """The table of an evaluation.

    Args:
        model: its name.
        data: name of the data set.
        cells: by method, then measure.
        verdicts: by measure with a better end: ``"valid"``; ``"undecided"``, if the best method and the best control
            cannot be told apart; ``"invalid"``, if a control is best.
        leaders: by the same measures: the best method, and those that cannot be told apart from it, which are no
            controls: the 95 % interval of the mean difference, image by image, includes zero.
        images: number of images or objects.
        examples: the first few.
    """

    model: str
    data: str
    cells: Mapping[str, Mapping[str, Cell]]
    verdicts: Mapping[str, str]
    leaders: Mapping[str, Sequence[str]]
    images: int
    examples: Sequence[Example] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``evaluation.json`` has them."""
        return {
            "model": self.model,
            "data": self.data,
            "images": self.images,
            "interval": "95 % bootstrap of the mean",
            "verdicts": dict(self.verdicts),
            "leaders": {name: list(methods) for name, methods in self.leaders.items()},
            "methods": {
                method: {
                    "control": method in CONTROLS,
                    **{
                        name: {"mean": c.mean, "low": c.low, "high": c.high, "images": c.images}
                        for name, c in row.items()
                    },
                }
                for method, row in self.cells.items()
            },
        }

    def to_csv(self) -> str:
        """A line for each method and measure."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["method", "control", "measure", "mean", "low", "high", "images", "verdict"])
        for method, row in self.cells.items():
            for name, c in row.items():
                control, verdict = str(method in CONTROLS).lower(), self.verdicts.get(name, "")
                table.writerow([method, control, name, c.mean, c.low, c.high, c.images, verdict])
        return text.getvalue()


def evaluate(
    model: nn.Module,
    data: str | Path,
    folder: str | Path,
    *,
    methods: Sequence[str] | None = None,
    measured: Sequence[str] | None = None,
    images: int = 100,
    split: str = "test",
    say: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Evaluates methods on a data set, and writes ``evaluation.json``, ``evaluation.csv`` and the values of each image.

    A classifier's best class is explained, of each image; a detector's detections that match annotated objects (the
    same class, IoU of at least 0.5), a panoptic network's segments that match annotated ones likewise, and a semantic
    segmenter's classes that are annotated and predicted, at most three of an image. The controls are always among the
    methods.

    Args:
        model: a network of this library with a card; or a classifier of timm or transformers, of which the best class
            is explained, without its name. Without focal modulation it has the methods that need no modulator.
        data: a data set as for training: class folders and the like, COCO annotations, or label maps; or the
            ``config.yaml`` of a run, which says where and what its data are.
        folder: where to write; an evaluation with the same options that was interrupted there continues. It grows, too:
            with more images, those that are measured are not measured again, and with fewer they are the first ones.
        methods: keys of ``METHODS``; default: all that the network has.
        measured: keys of ``COLUMNS``; default: all. Those that remove or insert pixels need hundreds of passes of a
            network with large images; those of localization need none.
        images: how many images are looked at, chosen at random, the same in every run.
        split: of the data set: ``"train"``, ``"val"`` or ``"test"``.
        say: called with a line about progress.

    Raises:
        ConfigError: an unknown method or measure, one that this network has none of, or a folder with an evaluation of
            something else.
        DataError: the data cannot be read, or nothing in it can be explained.
    """
    chosen = methods_of(model) if not methods else [*dict.fromkeys([*methods, *CONTROLS])]
    for name in chosen:
        check_method(model, name)
    wanted = _wanted(measured, model)
    folder = Path(folder)
    card = getattr(model, "card", None)
    header: dict[str, Any] = {
        "model": card.name if card else type(model).__name__,
        "data": str(data),
        "split": split,
        "images": images,
        "methods": chosen,
        **({"measures": wanted} if measured else {}),
    }
    with evaluating(model) as network:
        record = _Record(folder / "values.jsonl", header)
        examples: list[Example] = []
        count = batches = 0
        for batch, found in enumerate(find_subjects(network, Path(data), images, split)):
            subjects = replace(found, seed=count)
            count += len(subjects.targets)
            for method in chosen:
                if not record.has(batch, method, len(subjects.targets)):
                    sane = count <= max(SANE, len(subjects.targets))
                    names = wanted if sane else [name for name in wanted if name not in SANITY]
                    record.add(batch, method, _measured(subjects, method, names))
            batches = batch + 1
            say(f"{count} explained")
            if len(examples) < 3:
                examples.append(_example(subjects, chosen))
    if not count:
        raise DataError(f"{data}: the network predicts nothing there that is annotated; there is nothing to explain")
    values = {method: record.values(method, batches) for method in chosen}
    evaluation = Evaluation(
        model=header["model"],
        data=str(data),
        cells={method: _cells(row) for method, row in values.items()},
        verdicts=_verdicts(values),
        leaders=_leaders(values),
        images=count,
        examples=examples,
    )
    files.write(folder / "evaluation.json", (json.dumps(evaluation.to_dict(), indent=1) + "\n").encode())
    files.write(folder / "evaluation.csv", evaluation.to_csv().encode())
    return evaluation


def _wanted(names: Sequence[str] | None, model: nn.Module) -> list[str]:
    """The measures to take, in the order of the table."""
    for name in names or ():
        if name not in COLUMNS:
            raise ConfigError(
                f'measure: "{name}" is unknown{did_you_mean(name, COLUMNS)}; there are {", ".join(COLUMNS)}'
            )
    output = output_of(model)
    lacking = LOCALIZATION if output == "classification" else frozenset[str]()
    if output in ("detection", "instance"):
        lacking = frozenset({"random_logit"})  # a detection has no score of another class
    if missing := [name for name in names or () if name in lacking]:
        raise ConfigError(
            f"measure: {', '.join(missing)} cannot be measured of a {type(model).__name__}; there are "
            f"{', '.join(name for name in COLUMNS if name not in lacking)}"
        )
    return [name for name in COLUMNS if not names or name in names]


# ---- one method on a few images ----


def _measured(subjects: Subjects, method: str, wanted: Sequence[str]) -> dict[str, list[float]]:
    """The values of each image by measure, of those that are wanted and that these subjects have."""
    model, prepared = subjects.model, subjects.prepared[0]
    height, width = prepared.size
    blocks = default_blocks(model, method, prepared, subjects.targets[0])
    maps = saliency(subjects.request(blocks), method)[:, :height, :width]
    pixels, probability = subjects.pixels[..., :height, :width], subjects.probability
    patch = last_stride(model) if lacks_modulation(model) else stride_of(model, block_names(model)[-1])
    found = {}
    for name, measure, side in (
        ("deletion", measures.deletion, 1),
        ("insertion", measures.insertion, 1),
        ("deletion_patches", measures.deletion, patch),
        ("insertion_patches", measures.insertion, patch),
    ):
        if name in wanted:
            found[name] = measure(probability, pixels, maps, patch=side)
    if not ROAD.isdisjoint(wanted):
        morf, lerf = measures.road(probability, pixels, maps)
        found |= {"road_morf": morf, "road_lerf": lerf, "road": (lerf - morf) / 2}
    if not set(measures.Confidence._fields).isdisjoint(wanted):
        found |= measures.confidence(probability, pixels, maps)._asdict()
    if subjects.inside is not None:
        found["pointing_game"] = measures.pointing_game(maps, subjects.inside)
        found["energy_inside"] = measures.energy_inside(maps, subjects.inside)
        found["contrast"] = measures.contrast(maps, subjects.inside)
    found |= {"gini": measures.gini(maps), "entropy": measures.entropy(maps)}
    found |= _sanity(subjects, method, blocks, maps, wanted)
    return {name: values.tolist() for name, values in found.items() if name in wanted}


def _sanity(
    subjects: Subjects, method: str, blocks: Sequence[str], maps: Tensor, wanted: Sequence[str]
) -> dict[str, Tensor]:
    request = subjects.request(blocks)
    pixels = request.pixels

    def explain(model: nn.Module, images: Tensor) -> Tensor:
        asked = subjects.request(blocks, model=model)
        return saliency(replace(asked, pixels=images), method)

    found = {}
    if "mprt" in wanted:
        cascade = measures.cascading_randomization(subjects.model, explain, pixels, groups=GROUPS)
        found["mprt"] = torch.stack(list(cascade.values())).mean(0)
    if "max_sensitivity" in wanted:
        found["max_sensitivity"] = measures.max_sensitivity(partial(explain, subjects.model), pixels, samples=SHIFTS)
    if "random_logit" in wanted and all(other is not None for other in subjects.others):
        height, width = maps.shape[1:]
        of_others = saliency(subjects.request(blocks, others=True), method)[:, :height, :width]
        found["random_logit"] = measures.random_logit(maps, of_others)
    return found


def _example(subjects: Subjects, methods: Sequence[str]) -> Example:
    """The first of a few images with its maps."""
    prepared, target = subjects.prepared[0], subjects.targets[0]
    height, width = prepared.size
    maps = {}
    for method in methods:
        blocks = default_blocks(subjects.model, method, prepared, target)
        first = Subjects(subjects.model, [prepared], [target], [None], seed=subjects.seed)
        maps[method] = saliency(first.request(blocks), method)[0, :height, :width]
    return Example(target.name or class_name((), target.label), prepared.image, maps, prepared.region)


# ---- the file of values, and tables ----


class _Record:
    """The values of each batch of images and method, in a file of lines that survives an interruption."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.lines: dict[tuple[int, str], dict[str, list[float]]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and self._read(header):
            return
        files.write(path, (json.dumps(header) + "\n").encode())

    def has(self, batch: int, method: str, images: int) -> bool:
        """Whether the values of a batch are known; the last one of an evaluation of fewer images had fewer images."""
        values = self.lines.get((batch, method))
        return values is not None and all(len(each) == images for each in values.values())

    def add(self, batch: int, method: str, values: dict[str, list[float]]) -> None:
        self.lines[batch, method] = values
        line = json.dumps({"batch": batch, "method": method, "values": values})
        try:
            with self.path.open("a") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise FocalNetError(f"cannot write {self.path}: {error}") from error

    def values(self, method: str, count: int) -> dict[str, Tensor]:
        """The values of a method by measure, of the first ``count`` batches, in order of the images."""
        batches = [self.lines[batch, method] for batch in range(count)]
        names = dict.fromkeys(name for values in batches for name in values)
        return {name: torch.tensor([v for values in batches for v in values.get(name, [])]) for name in names}

    def _read(self, header: Mapping[str, Any]) -> bool:
        """Whether the file has whole lines of the same evaluation; a last line that was cut is removed."""
        whole, _, _ = self.path.read_text().rpartition("\n")
        lines = whole.splitlines()
        if not lines:
            return False
        try:
            first, *rest = map(json.loads, lines)
            for line in rest:
                self.lines[line["batch"], line["method"]] = line["values"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self.path}: is not a file of this evaluation ({error}); choose another --out"
            ) from error
        if {**first, "images": None} != {**header, "images": None}:  # their order does not depend on their number
            raise ConfigError(f"{self.path}: is of an evaluation with other options; choose another --out")
        files.write(self.path, ("\n".join([json.dumps(header), *lines[1:]]) + "\n").encode())
        return True


def _cells(values: Mapping[str, Tensor]) -> dict[str, Cell]:
    return {name: Cell(*measures.bootstrap(values[name]), len(values[name])) for name in COLUMNS if name in values}


def _verdicts(values: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
    """Whether each measure with a better end tells methods from controls."""
    verdicts = {}
    for name, found in _comparable(values).items():
        means = {method: float(row.mean()) for method, row in found.items()}
        best = max((method for method in found if method not in CONTROLS), key=lambda method: means[method])
        control = max(CONTROLS, key=lambda method: means[method])
        if means[control] >= means[best]:
            verdicts[name] = "invalid"
        else:
            verdicts[name] = "undecided" if _tied(found[best], found[control]) else "valid"
    return verdicts


def _leaders(values: Mapping[str, Mapping[str, Tensor]]) -> dict[str, list[str]]:
    """The best method of each measure with a better end, and those that cannot be told apart from it."""
    leaders = {}
    for name, found in _comparable(values).items():
        methods = [method for method in found if method not in CONTROLS]
        first, *others = sorted(methods, key=lambda method: -float(found[method].mean()))
        leaders[name] = [first, *(method for method in others if _tied(found[first], found[method]))]
    return leaders


def _comparable(values: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """By measure with a better end and by method: the values of each image, turned so that higher is better."""
    comparable = {}
    for name, column in COLUMNS.items():
        sign = 1 if column.higher_is_better else -1
        found = {method: sign * row[name].double() for method, row in values.items() if name in row}
        if column.higher_is_better is None or set(found) <= set(CONTROLS):
            continue
        if not any(bool(row.mean().isnan()) for row in found.values()):
            comparable[name] = found
    return comparable


def _tied(best: Tensor, other: Tensor) -> bool:
    _, low, _ = measures.bootstrap(best - other)
    return low <= 0
