"""What the page asks of models: predictions, heat maps, gates and receptive fields, one request at a time.

It knows nothing of the page and holds no state of a visitor: each question names the image and the settings. Recent
answers are kept, in bounded number, so that moving the opacity does not run the network again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from focalnet.demo.uploads import Upload
from focalnet.errors import ConfigError, did_you_mean
from focalnet.explanations import (
    CONTROLS,
    DEFAULT_METHOD,
    METHODS,
    ClassTarget,
    Explanation,
    Prepared,
    Target,
    attribute,
    block_names,
    explain,
    prepare,
    receptive_field,
    targets_of,
)
from focalnet.models import Model
from focalnet.reading import whole_number
from focalnet.results import Classification, Detections, Result

Network = Model[Any, Any]
Box = tuple[float, float, float, float]

GATE = "gate"  # the view of one level's gate, beside the methods
VIEWS = {**METHODS, GATE: "gate of one level, raw values, the same for every class"}
"""What a panel can show, and one line about it."""
AUTOMATIC = "automatic"  # the block that the method chooses
MIN_SCORE = 0.3  # of objects, as in focalnet.Predictor
MOST_TARGETS = 100  # offered in the list of classes
STUDIES, MAPS = 8, 32  # answers that are kept
WITHOUT_TARGET = ("modulator", "gates", *CONTROLS)  # methods that need nothing to explain
#: Methods that run the network tens to hundreds of times, and the largest input in pixels that they are offered for.
REPEATED, REPEATED_PIXELS = ("score_cam", "integrated_gradients"), 256 * 256

T = TypeVar("T")


class View(NamedTuple):
    """What one panel of the page shows.

    Args:
        model: a name in ``Explorer.models``.
        target: what to explain: ``"#0"`` for the first of ``Study.targets``, or its name.
        method: a key of ``METHODS``, or ``GATE``.
        block: the name of a block, or ``AUTOMATIC``.
        level: for ``GATE``: ``"level 1"``, ..., ``"global"``.
    """

    model: str
    target: str = "#0"
    method: str = DEFAULT_METHOD
    block: str = AUTOMATIC
    level: str = "level 1"


@dataclass(frozen=True, eq=False)
class Study:
    """What a model makes of an image.

    Args:
        upload: the image.
        prepared: the image as the network takes it.
        explanation: gates and modulators of all blocks.
        result: what is predicted, with the image to draw on; None for a backbone.
        targets: what can be explained, best or largest first, with its score if it has one.
    """

    upload: Upload = field(repr=False)
    prepared: Prepared = field(repr=False)
    explanation: Explanation = field(repr=False)
    result: Result | None
    targets: tuple[tuple[Target, float | None], ...]

    def levels(self, block: str) -> list[str]:
        """Names of the gates of a block."""
        return [f"level {i}" for i in range(1, len(self.maps(block).gates))] + ["global"]

    def maps(self, block: str) -> Any:
        """The ``BlockMaps`` of a block; of the last one if it is automatic.

        Raises:
            ConfigError: no such block.
        """
        known = {maps.name: maps for maps in self.explanation.blocks}
        if block == AUTOMATIC:
            return self.explanation.blocks[-1]
        if block not in known:
            raise ConfigError(f'block: no "{block}"{did_you_mean(block, known)}; choose one of the list')
        return known[block]

    def target(self, wanted: str) -> Target | None:
        """The target of a view; None if the network predicts nothing in this image.

        Raises:
            ConfigError: no such class.
        """
        if not self.targets:
            return None
        names = [target.name for target, _ in self.targets]
        number = whole_number(wanted.removeprefix("#")) if wanted.startswith("#") else None
        if number is not None and number < len(names):
            return self.targets[number][0]
        if wanted in names:
            return self.targets[names.index(wanted)][0]
        raise ConfigError(f'class: no "{wanted[:80]}"{did_you_mean(wanted[:80], names)}; choose one of the list')


@dataclass(frozen=True, eq=False)
class Map:
    """Values over an image.

    Args:
        values: ``(h, w)``.
        region: the part of the image that they cover, in its pixels.
        signed: whether zero is the middle of the colors.
        title: what it is.
        target: what it explains; empty if it is the same for all targets.
        blocks: the blocks that it is made of.
    """

    values: NDArray[np.float32] = field(repr=False)
    region: Box
    signed: bool
    title: str
    target: str
    blocks: tuple[str, ...]

    def at(self, x: float, y: float) -> tuple[int, int] | None:
        """Row and column of the value at a pixel of the image; None outside the region."""
        left, top, right, bottom = self.region
        height, width = self.values.shape
        column, row = (x - left) / (right - left) * width, (y - top) / (bottom - top) * height
        return (int(row), int(column)) if 0 <= row < height and 0 <= column < width else None


@dataclass(frozen=True, eq=False)
class Reading:
    """What a block computes at one pixel, and where it looks.

    Args:
        x, y: the pixel, of the image as it was reduced.
        block: name of the block.
        row, column: of its feature map.
        size: height and width of the feature map.
        gates: by level.
        modulator: the L2 norm.
        value: of the map that the panel shows; None where it has none.
        field: how much each pixel moves the block's output there.
    """

    x: int
    y: int
    block: str
    row: int
    column: int
    size: tuple[int, int]
    gates: dict[str, float]
    modulator: float
    value: float | None
    field: Map = field(repr=False)


class Explorer:
    """Answers questions about images by a few models, one at a time.

    Args:
        models: by name, in evaluation mode; at least one.
    """

    def __init__(self, models: Mapping[str, Network]) -> None:
        self.models = dict(models)
        self._lock = threading.RLock()  # hooks of two explanations of one model would see each other's passes
        self._studies: OrderedDict[Hashable, Study] = OrderedDict()
        self._maps: OrderedDict[Hashable, Map] = OrderedDict()

    def model(self, name: str) -> Network:
        """The model of a name; raises ConfigError if there is none."""
        if name not in self.models:
            raise ConfigError(f'model: no "{name}"{did_you_mean(name, self.models)}; choose one of the list')
        return self.models[name]

    def blocks(self, name: str) -> list[str]:
        """Names of the blocks of a model."""
        return block_names(self.model(name))

    def study(self, name: str, upload: Upload) -> Study:
        """What a model predicts of an image, with the gates and modulators of all blocks.

        Raises:
            FocalNetError: no such model, or the network cannot take the image.
        """
        model = self.model(name)

        def made() -> Study:
            prepared = prepare(model, upload.image)
            explanation = explain(model, prepared, block_names(model))
            result = explanation.prediction
            if isinstance(result, Detections):
                result = result.above(MIN_SCORE)
            if result is not None:
                result = replace(result, image=upload.image, path=upload.name)  # type: ignore[type-var]
            return Study(upload, prepared, explanation, result, _targets(model, result))

        with self._lock:
            return _kept(self._studies, (name, upload.key), STUDIES, made)

    def map(self, view: View, upload: Upload) -> Map:
        """The values that a panel shows.

        Raises:
            FocalNetError: a setting does not exist, or does not fit the model or the image.
        """
        with self._lock:
            study = self.study(view.model, upload)
            if view.method == GATE:
                return _gate(study, view)
            target = study.target(view.target)
            self._check(view, study)
            label = None if target is None else next(i for i, (t, _) in enumerate(study.targets) if t is target)
            key = (view.model, upload.key, view.method, view.block, label)
            return _kept(self._maps, key, MAPS, lambda: self._attributed(view, study, target))

    def strip(self, view: View, upload: Upload) -> list[Map]:
        """The gates of all levels of a panel's block, and the norm of its modulator, as in the paper's figures."""
        with self._lock:
            study = self.study(view.model, upload)
            maps = study.maps(view.block)
            return [Map(values, maps.region, False, title, "", (maps.name,)) for title, values in maps.named().items()]

    def reading(self, view: View, upload: Upload, x: int, y: int) -> Reading:
        """What a panel's block computes at a pixel of the image.

        Raises:
            ConfigError: the network does not see this pixel.
        """
        with self._lock:
            study = self.study(view.model, upload)
            shown = self.map(view, upload)
            block = shown.blocks[0] if len(shown.blocks) == 1 and view.block == AUTOMATIC else view.block
            maps = study.maps(block)
            modulator = Map(maps.modulator, maps.region, False, "", "", ())
            prepared = study.prepared
            left, top, right, bottom = prepared.region
            height, width = prepared.size
            position = ((x + 0.5 - left) / (right - left) * width, (y + 0.5 - top) / (bottom - top) * height)
            cell = modulator.at(x + 0.5, y + 0.5)
            if cell is None or not (0 <= position[0] < width and 0 <= position[1] < height):
                raise ConfigError(
                    f"pixel ({x}, {y}) is outside the part of the image that the network sees: choose one within the "
                    "colored part"
                )
            values = receptive_field(self.model(view.model), prepared, maps.name, position).numpy()
            there = shown.at(x + 0.5, y + 0.5)
            return Reading(
                x=x,
                y=y,
                block=maps.name,
                row=cell[0],
                column=cell[1],
                size=maps.modulator.shape,
                gates={name: float(gate[cell]) for name, gate in zip(study.levels(maps.name), maps.gates, strict=True)},
                modulator=float(maps.modulator[cell]),
                value=None if there is None else float(shown.values[there]),
                field=Map(values, prepared.region, False, "receptive field", "", (maps.name,)),
            )

    def _attributed(self, view: View, study: Study, target: Target | None) -> Map:
        heat = attribute(
            self.model(view.model),
            study.prepared,
            target,
            view.method,
            blocks=None if view.block == AUTOMATIC else [view.block],
            result=study.result,
        )
        return Map(heat.values.numpy(), heat.region, heat.signed, METHODS[view.method], heat.target, heat.blocks)

    def _check(self, view: View, study: Study) -> None:
        if view.method not in METHODS:
            raise ConfigError(f'method: no "{view.method}"{did_you_mean(view.method, VIEWS)}; choose one of the list')
        if view.block != AUTOMATIC:
            study.maps(view.block)
        if not study.targets and view.method not in WITHOUT_TARGET:
            raise ConfigError(
                f"nothing is predicted in this image, so there is nothing that {view.method} could explain: choose "
                f"{', '.join(WITHOUT_TARGET)} or {GATE}"
            )
        height, width = study.prepared.pixels.shape[-2:]
        if view.method in REPEATED and height * width > REPEATED_PIXELS:
            raise ConfigError(
                f"{view.method} runs the network tens to hundreds of times, too often for its input of {width} x "
                f"{height} pixels on a page for many: use focalnet.explanations.attribute"
            )


def _targets(model: Network, result: Result | None) -> tuple[tuple[Target, float | None], ...]:
    """What can be explained: all classes of a classifier by score, otherwise what is predicted."""
    if result is None:
        return ()
    if isinstance(result, Classification) and result.logits is not None:
        scores = result.logits.float().flatten().softmax(0)
        order = scores.argsort(descending=True, stable=True).tolist()
        names: Sequence[str] = model.class_names
        return tuple((ClassTarget(i, names[i] if i < len(names) else f"class {i}"), float(scores[i])) for i in order)
    targets = targets_of(result)[:MOST_TARGETS]
    if isinstance(result, Detections):
        return tuple(zip(targets, result.scores.tolist(), strict=False))
    return tuple((target, None) for target in targets)


def _gate(study: Study, view: View) -> Map:
    maps = study.maps(view.block)
    levels = study.levels(maps.name)
    if view.level not in levels:
        raise ConfigError(f'level: {maps.name} has no "{view.level}"; it has {", ".join(levels)}')
    values = maps.gates[levels.index(view.level)]
    return Map(values, maps.region, False, f"gate of {view.level}, raw values", "", (maps.name,))


def _kept(cache: OrderedDict[Hashable, T], key: Hashable, most: int, make: Callable[[], T]) -> T:
    """The entry of a cache, made if it is missing; the one that was not asked for longest makes room."""
    if key not in cache:
        cache[key] = make()
        if len(cache) > most:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]
