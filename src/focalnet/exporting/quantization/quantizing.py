"""Int8 files that keep their accuracy: calibrated, checked layer by layer, and measured before they are written."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch

from focalnet.errors import ConfigError, ExportError
from focalnet.exporting.quantization.changes import change
from focalnet.exporting.quantization.data import Inputs, LabeledData
from focalnet.exporting.quantization.onnx_layers import Layer
from focalnet.inference.exported import ExportedNetwork
from focalnet.metrics.base import Metric
from focalnet.results import Result

logger = logging.getLogger(__name__)

#: Percentage points of each headline metric that int8 may cost.
MAX_LOSS = {"classification": 0.3}
_MAX_LOSS = 0.5  # of other types of results
#: Calibration images whose results are compared, to choose ranges and to order layers.
COMPARED = {"classification": 64, "multilabel": 64}
_COMPARED = 4  # for other types of results
SHOWN = 8  # layers in the table on the terminal


class Layers(Protocol):
    """The layers of an exported file that int8 can compute, and how files with some of them in int8 are written.

    Attributes:
        layers: by name.
    """

    @property
    def layers(self) -> Mapping[str, Layer]: ...

    def observe(self, batches: Callable[[], Iterable[Inputs]]) -> Mapping[str, Any]:
        """The ranges of activations by the rule that finds them; layers that no image reaches are left out.

        Args:
            batches: gives inputs of the file, each time from the first.
        """

    def write(self, path: Path, ranges: Any, names: Collection[str], metadata: Mapping[str, str]) -> None:
        """Writes the file with these layers in int8, and entries of its metadata replaced."""


@dataclass(frozen=True)
class LayerCost:
    """What a layer costs.

    Args:
        layer: its name, operator and number of weights.
        change: of the results when it alone is in int8, see ``changes.change``.
        kept: whether it stays in float32.
    """

    layer: Layer
    change: float
    kept: bool


@dataclass(frozen=True)
class Quantization:
    """How a file was quantized, and what that costs.

    Args:
        data: the labeled data.
        split: whose images measured.
        images: number of images that measured.
        calibration: number of training images that calibrated.
        ranges: the rule that chose the ranges of activations: ``"minmax"``, ``"percentile"``, or, of ONNX
            files, ``"entropy"``, and of OpenVINO's ``"histogram"``.
        changes: of the results by each rule with all layers in int8, see ``changes.change``.
        max_loss: percentage points of each metric that could be lost.
        float32: headline metrics of the file in float32, by name.
        int8: those of the file that was written.
        tries: the number of layers in float32 and the metrics of each file that was measured, in order.
        layers: all layers, those that cost most first.
    """

    data: str
    split: str
    images: int
    calibration: int
    ranges: str
    changes: Mapping[str, float]
    max_loss: float
    float32: Mapping[str, Metric]
    int8: Mapping[str, Metric]
    tries: Sequence[tuple[int, Mapping[str, float]]]
    layers: Sequence[LayerCost]

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the layers that stay in float32 because they cost too much."""
        return tuple(cost.layer.name for cost in self.layers if cost.kept)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        names = {metric.name: metric.title for metric in self.float32.values()}
        return {
            **self.summary(),
            "data": self.data,
            "titles": names,
            "max_loss": self.max_loss,
            "changes_by_ranges": dict(self.changes),
            "tries": [{"in_float32": number, "metrics": dict(values)} for number, values in self.tries],
            "layers": [
                {
                    "name": cost.layer.name,
                    "operator": cost.layer.operator,
                    "parameters": cost.layer.parameters,
                    "change": cost.change,
                    "in_float32": cost.kept,
                }
                for cost in self.layers
            ],
        }

    def summary(self) -> dict[str, Any]:
        """What the metadata of the file say of it."""
        return {
            "ranges": self.ranges,
            "calibration_images": self.calibration,
            "split": self.split,
            "images": self.images,
            "float32": {name: metric.value for name, metric in self.float32.items()},
            "int8": {name: metric.value for name, metric in self.int8.items()},
            "kept": list(self.kept),
        }

    def lines(self) -> Iterator[str]:
        """What the terminal shows."""
        for name, before in self.float32.items():
            after = self.int8[name]
            difference = f"{after.value - before.value:+.2f}"
            yield (
                f"{before.title}: {before} in float32, {after} in int8 ({difference}), measured on {self.images} "
                f"images (split {self.split})"
            )
        yield f"calibrated with {self.calibration} training images, ranges by {self.ranges}"
        kept, all_layers = len(self.kept), len(self.layers)
        yield f"in int8: {all_layers - kept} of {all_layers} layers" + f"; {kept} cost too much" * bool(kept)
        width = max(len(cost.layer.name) for cost in self.layers)
        yield f"{'layer':{width}}  change of the results when it alone is in int8"
        for cost in self.layers[:SHOWN]:
            yield f"{cost.layer.name:{width}}  {100 * cost.change:6.2f} %" + "  kept in float32" * cost.kept


def check_max_loss(max_loss: float | None, output: str) -> float:
    """The percentage points that may be lost: those given, or the default for the type of results."""
    if max_loss is None:
        return MAX_LOSS.get(output, _MAX_LOSS)
    if not 0 <= max_loss <= 100:
        raise ConfigError(f"max_loss={max_loss} must be between 0 and 100 percentage points")
    return max_loss


def quantize(
    layers: Layers,
    source: Path,
    format: str,
    data: LabeledData,
    max_loss: float,
    path: Path,
) -> tuple[Quantization, Callable[[Path, Mapping[str, str]], None]]:
    """Chooses ranges and layers so that the accuracy stays.

    First all layers are in int8. As long as more is lost than may be, the layers that change the results most stay in
    float32: one, two, four, ...

    Args:
        layers: of the file.
        source: the file in float32.
        format: its format.
        data: to calibrate and measure with.
        max_loss: percentage points of each headline metric that may be lost.
        path: what messages call the file.

    Returns:
        What was chosen and measured, and a function that writes the file with entries of its metadata replaced.

    Raises:
        ExportError: whatever layers stay in float32, more is lost.
    """
    network, output = ExportedNetwork(source, format), data.config.output
    logger.info("int8: measuring in float32 on %d images", data.images)
    before = data.measure(network)
    _check_measurable(before, data, path)
    logger.info("int8: calibrating with %d images", data.calibration)
    ranges = layers.observe(data.inputs)
    if not layers.layers:
        raise ExportError(f"{path}: not written: none of its layers can be computed in int8; leave int8 out")
    compared = list(data.inputs(COMPARED.get(output, _COMPARED)))
    expected = _results(network, compared)
    with TemporaryDirectory() as folder:
        part = Path(folder) / f"int8{path.suffix}"

        def with_layers(rule: str, names: Collection[str]) -> ExportedNetwork:
            layers.write(part, ranges[rule], names, {})
            return ExportedNetwork(part, format)

        everything = list(layers.layers)
        changes = {rule: change(expected, _results(with_layers(rule, everything), compared)) for rule in ranges}
        rule = min(changes, key=lambda name: changes[name])
        logger.info("int8: comparing %d layers on %d images", len(everything), len(expected))
        costs = {name: change(expected, _results(with_layers(rule, [name]), compared)) for name in everything}
        order = sorted(everything, key=lambda name: -costs[name])
        tries: list[tuple[int, Mapping[str, Metric]]] = []
        for kept in _numbers(len(order)):
            logger.info("int8: measuring with %d of %d layers in float32", kept, len(order))
            tries.append((kept, data.measure(with_layers(rule, order[kept:]))))
            if loss(before, tries[-1][1]) <= max_loss:
                break
        else:
            raise ExportError(_refusal(path, before, tries, len(order), data, max_loss))
    quantization = Quantization(
        data=str(data.root),
        split=data.split,
        images=data.images,
        calibration=data.calibration,
        ranges=rule,
        changes=changes,
        max_loss=max_loss,
        float32=before,
        int8=tries[-1][1],
        tries=[(number, {name: metric.value for name, metric in values.items()}) for number, values in tries],
        layers=[LayerCost(layers.layers[name], costs[name], name in order[:kept]) for name in order],
    )
    return quantization, lambda target, metadata: layers.write(target, ranges[rule], order[kept:], metadata)


def loss(before: Mapping[str, Metric], after: Mapping[str, Metric]) -> float:
    """Percentage points that are lost of the metric that loses most; negative where all gain."""
    return max(metric.value - after[name].value for name, metric in before.items())


def report(quantization: Quantization, model: str, sizes: Mapping[str, int]) -> bytes:
    """The content of the JSON file beside the exported one.

    Args:
        quantization: what was done.
        model: name of the weights.
        sizes: bytes of the files, by type.
    """
    return (json.dumps({"model": model, "bytes": dict(sizes), **quantization.to_dict()}, indent=1) + "\n").encode()


def _results(network: ExportedNetwork, batches: Sequence[Inputs]) -> list[Result]:
    results: list[Result] = []
    for batch in batches:
        sizes, originals = ([(int(h), int(w)) for h, w in batch[name]] for name in ("sizes", "original_sizes"))
        results += network.predict(torch.from_numpy(batch["images"]), sizes, originals)
    return results


def _numbers(layers: int) -> Iterator[int]:
    """0, 1, 2, 4, ... below the number of layers."""
    yield 0
    number = 1
    while number < layers:
        yield number
        number *= 2


def _check_measurable(before: Mapping[str, Metric], data: LabeledData, path: Path) -> None:
    """Raises ExportError where the network is not better than guessing, so that no loss can be measured."""
    for metric in before.values():
        if not metric.value > data.chance():
            raise ExportError(
                f"{path}: not written: in float32 the model reaches {metric.title} {metric} on {data.images} images of "
                f"{data.root}, no more than guessing, so that no loss can be measured; give data that it was made for"
            )


def _refusal(
    path: Path,
    before: Mapping[str, Metric],
    tries: Sequence[tuple[int, Mapping[str, Metric]]],
    layers: int,
    data: LabeledData,
    max_loss: float,
) -> str:
    kept, after = min(tries, key=lambda one: loss(before, one[1]))
    lost = loss(before, after)
    accepted = math.ceil(100 * lost) / 100
    figures = ", ".join(f"{metric.title} {metric} in float32, {after[name]} in int8" for name, metric in before.items())
    return (
        f"{path}: not written: int8 loses {lost:.2f} percentage points with {kept} of {layers} layers in float32 "
        f"({figures}; {data.images} images), more than {max_loss:g}; --max-loss {accepted:.2f} accepts it"
    )
