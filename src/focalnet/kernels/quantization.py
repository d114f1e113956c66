"""From calibration images to int8: ranges of the linear layers' inputs, and what each layer costs in accuracy.

All of this runs on PyTorch's float operations, before the model is frozen: hooks record the inputs of the linear layers
and then replace single layers by the reference of the int8 arithmetic. Costs are changes of the model's outputs; of
networks whose outputs cannot be compared (the order of a detector's objects changes with their scores), changes of what
their method ``comparable_outputs`` returns: the backbone's feature maps.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from focalnet.errors import ConfigError, InputError
from focalnet.kernels import int8
from focalnet.kernels.cpu.arguments import Steps
from focalnet.kernels.fused import FusedFocalNetBlock, block_weights

_LAYERS = {"f": "modulation.f", "h": "modulation.h", "proj": "modulation.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
_SAMPLE = 2**15  # numbers of a layer's input per batch from which its range is chosen
_MOST_NUMBERS = 2**19  # of all batches together
_ROUNDING = 0.1  # change of the output that is put down to bfloat16, and to sums in another order
_TOP1 = "top-1 accuracy"
_SHRINK = [0.94**i for i in range(40)]  # candidates for the limits of a range, relative to the largest number


@dataclass(frozen=True)
class Int8:
    """How ``optimize`` computes linear layers in int8; ``focalnet.int8_from_data`` makes it from labeled data.

    Args:
        images: calibration images, a batch or several, preprocessed as the model's input; some hundred images like
            those of the application. Numbers beyond the range of these are clipped later. What is not a tensor, list
            or tuple is iterated over several times, so that it may read batches from disk.
        evaluation: what is measured before and after: other images with their classes, as pairs of ``(B, 3, H, W)``
            and ``(B,)``, for a classifier's accuracy; or a function that takes the model and returns metrics by name,
            as fractions, larger for better models.
        max_drop: largest accepted loss of each metric of ``evaluation``, as a fraction. While more is lost, the 1, 2,
            4, ... layers that cost most stay in higher precision.
        max_layer_error: a layer that alone changes the model's output by more than this stays in higher precision; the
            change is relative, in the root mean square over all calibration images in ``sensitivity_images``.
        max_error: the same for all layers together: those that cost most stay in higher precision until it is met.
        sensitivity_images: number of calibration images on which costs are measured.
    """

    images: torch.Tensor | Iterable[torch.Tensor]
    evaluation: Sequence[tuple[torch.Tensor, torch.Tensor]] | Callable[[nn.Module], Mapping[str, float]] | None = None
    max_drop: float = 0.003
    max_layer_error: float = 0.05
    max_error: float = 0.1
    sensitivity_images: int = 16

    def __post_init__(self) -> None:
        for name in ("max_drop", "max_layer_error", "max_error"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)} of int8 must be at least 0")
        if self.sensitivity_images < 1:
            raise ConfigError(f"sensitivity_images={self.sensitivity_images} of int8 must be at least 1")
        if isinstance(self.images, (torch.Tensor, list, tuple)):
            for _ in self.batches():
                pass

    def batches(self) -> Iterator[torch.Tensor]:
        """The calibration images, batch by batch.

        Raises:
            InputError: there are none, or they are not finite float batches.
        """
        count = 0
        for x in [self.images] if isinstance(self.images, torch.Tensor) else self.images:
            if not isinstance(x, torch.Tensor) or x.ndim != 4 or not x.is_floating_point() or x.numel() == 0:
                raise InputError(f"calibration images must be float batches (B, C, H, W), got {_described(x)}")
            if not bool(x.isfinite().all()):
                raise InputError("calibration images contain numbers that are not finite")
            count += 1
            yield x
        if not count:
            raise InputError("int8 needs calibration images, got none")


@dataclass
class LayerCost:
    """A linear layer and its cost in int8.

    Args:
        name: full name in the model.
        shape: output and input channels.
        low: lower limit of its input in int8.
        high: upper limit.
        error: relative change of the model's output, in the root mean square, if only this layer computes in int8.
        int8: whether it computes in int8; otherwise in the model's dtype.
    """

    name: str
    shape: tuple[int, int]
    low: float
    high: float
    error: float
    int8: bool = True


@dataclass
class Quantization:
    """Which linear layers compute in int8, and at what cost; ``print`` shows a table.

    Args:
        layers: all linear layers of all blocks.
        error: relative change of the model's output by all int8 layers together, in the root mean square.
        agreement: fraction of the calibration images that get the same class; None for models without classes.
        metrics: those of ``Int8.evaluation`` before and after, as fractions, by name.
        compared: what ``error`` and the costs of layers are changes of: ``"the output"`` or ``"the feature maps"``.
    """

    layers: list[LayerCost]
    error: float = 0.0
    agreement: float | None = None
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)
    compared: str = "the output"
    _steps: dict[str, Steps] = field(default_factory=dict, repr=False)

    @property
    def kept(self) -> list[LayerCost]:
        """The layers that stay in higher precision."""
        return [layer for layer in self.layers if not layer.int8]

    @property
    def accuracy(self) -> tuple[float, float] | None:
        """Top-1 accuracy on ``Int8.evaluation`` before and after, as fractions; None if it was not measured."""
        return self.metrics.get(_TOP1)

    def lost(self) -> float:
        """What the metric that loses most has lost, as a fraction; negative if all gain."""
        return max(before - after for before, after in self.metrics.values())

    def summary(self) -> list[str]:
        """The result in sentences."""
        count = len(self.layers) - len(self.kept)
        lines = [f"{count} of {len(self.layers)} linear layers compute in int8"]
        if self.kept:
            names = ", ".join(f"{layer.name} ({layer.error:.1%})" for layer in self.kept)
            lines.append(f"in higher precision, for their change of {self.compared}: {names}")
        same = "" if self.agreement is None else f"; {self.agreement:.1%} of the calibration images keep their class"
        lines.append(f"int8 changes {self.compared} by {self.error:.1%}{same}")
        lines += [f"{name} {before:.2%} before, {after:.2%} in int8" for name, (before, after) in self.metrics.items()]
        return lines

    def __str__(self) -> str:
        width = max([len(layer.name) for layer in self.layers], default=5)
        rows = [f"{'layer':{width}}  {'weight':>11}  {'input from':>10}  {'to':>10}  {'change':>8}  int8"]
        for layer in self.layers:
            rows.append(
                f"{layer.name:{width}}  {'x'.join(map(str, layer.shape)):>11}  {layer.low:10.3g}  {layer.high:10.3g}  "
                f"{layer.error:8.3%}  {'yes' if layer.int8 else 'no'}"
            )
        return "\n".join([*rows, *self.summary()])


def calibrate(model: nn.Module, options: Int8) -> Quantization:
    """Chooses the range of every layer and which layers compute in int8; the model does not change.

    Raises:
        ConfigError: the model has no blocks to quantize, or does not return tensors.
    """
    layers = _linear_layers(model)
    if not layers:
        raise ConfigError(
            "int8 needs a model with unmodified FocalNet blocks, built by this library and on the CPU: it found none"
        )
    with torch.no_grad():
        with _recorded(layers) as inputs:
            for x in options.batches():
                _outputs(model, x)
        result = Quantization([], compared="the feature maps" if _compares_features(model) else "the output")
        for name, layer in layers.items():
            if not inputs[name].numbers:
                raise ConfigError(f"{name} did not run on the calibration images: int8 cannot choose its range")
            steps = inputs[name].steps()
            low, high = ((limit - steps.zero_point) * steps.scale for limit in (0, 255))
            assert isinstance(layer.weight, torch.Tensor)
            shape = (layer.weight.shape[0], layer.weight.shape[1])
            result.layers.append(LayerCost(name, shape, low, high, 0.0))
            result._steps[name] = steps
        _choose(model, layers, result, options)
        result.agreement = _agreement(model, options, result)
    return result


class Proof:
    """What the model's outputs for the first calibration image should be, to compare the int8 kernels' with.

    Args:
        model: not frozen.
        options: whose first image.
        result: which layers are in int8.
    """

    def __init__(self, model: nn.Module, options: Int8, result: Quantization) -> None:
        self._image = next(options.batches())[:1]
        with torch.no_grad():
            self._expected = _outputs(model, self._image)
            self._change = _error(model, _linear_layers(model), result, [self._image], [self._expected])

    def check(self, model: nn.Module) -> None:
        """Raises ConfigError if the outputs of the frozen model differ much more from float than they should."""
        with torch.no_grad():
            change = _relative_change([_outputs(model, self._image)], [self._expected])
        if not change <= 2 * self._change + _ROUNDING:
            raise ConfigError(
                f"in int8 an image changes the output by {change:.1%}, where the layers should "
                f"by {self._change:.1%}: choose dtype float32, or leave int8 out"
            )


def keep_more(model: nn.Module, options: Int8, result: Quantization, count: int) -> None:
    """Keeps ``count`` more layers in higher precision: those that cost most."""
    for layer in sorted((layer for layer in result.layers if layer.int8), key=lambda layer: -layer.error)[:count]:
        layer.int8 = False
    layers = _linear_layers(model)
    images = _first_images(options)
    with torch.no_grad():
        result.error = _error(model, layers, result, images, [_outputs(model, x) for x in images])
        result.agreement = _agreement(model, options, result)


def measure(model: nn.Module, options: Int8) -> dict[str, float]:
    """The metrics of ``options.evaluation``, as fractions, by name; none without it.

    Raises:
        InputError: the model is not a classifier and the evaluation is images with classes, or a metric is not finite.
    """
    if options.evaluation is None:
        return {}
    if not callable(options.evaluation):
        return {_TOP1: accuracy(model, options.evaluation)}
    with torch.no_grad():
        metrics = {name: float(value) for name, value in options.evaluation(model).items()}
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise InputError(f"the evaluation of int8 returned {name}={value}: it must be finite")
    if not metrics:
        raise InputError("the evaluation of int8 returned no metric")
    return metrics


def accuracy(model: nn.Module, evaluation: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """The top-1 accuracy of a classifier as a fraction; images are converted to the dtype of its parameters."""
    dtype = next(model.parameters()).dtype
    right = total = 0
    with torch.no_grad():
        for images, labels in evaluation:
            logits = model(images.to(dtype))
            if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or labels.shape != logits.shape[:1]:
                raise InputError(
                    "int8's evaluation needs a classifier, and one class for each image: it returned "
                    f"{_described(logits)} for classes of shape {tuple(labels.shape)}"
                )
            right += int((logits.argmax(1) == labels).sum())
            total += len(labels)
    if not total:
        raise InputError("int8's evaluation has no images")
    return right / total


def assign(model: nn.Module, quantization: Quantization) -> list[nn.Module]:
    """Sets the attribute ``int8_steps`` of the blocks, which ``freeze`` reads; returns these blocks."""
    chosen = {layer.name for layer in quantization.layers if layer.int8}
    blocks: list[nn.Module] = []
    for prefix, block in _blocks(model):
        steps = {
            key: quantization._steps[_joined(prefix, name)]
            for key, name in _LAYERS.items()
            if _joined(prefix, name) in chosen
        }
        if steps:
            block.__dict__["int8_steps"] = steps
            blocks.append(block)
    return blocks


def _choose(model: nn.Module, layers: dict[str, nn.Module], result: Quantization, options: Int8) -> None:
    """Measures each layer's cost, and keeps those that cost too much in higher precision."""
    images = _first_images(options)
    expected = [_outputs(model, x) for x in images]
    for layer in result.layers:
        if not int8.fits(layers[layer.name].weight):  # type: ignore[arg-type]
            layer.error, layer.int8 = float("inf"), False
            continue
        with _replaced({layer.name: layers[layer.name]}, result._steps):
            layer.error = _relative_change([_outputs(model, x) for x in images], expected)
        layer.int8 = layer.error <= options.max_layer_error
    for worst in sorted(result.layers, key=lambda layer: -layer.error):
        result.error = _error(model, layers, result, images, expected)
        if result.error <= options.max_error:
            return
        worst.int8 = False
    result.error = 0.0


def _first_images(options: Int8) -> list[torch.Tensor]:
    """The calibration images on which costs are measured, in batches."""
    images: list[torch.Tensor] = []
    wanted = options.sensitivity_images
    for x in options.batches():
        images.append(x[:wanted])
        wanted -= len(images[-1])
        if wanted <= 0:
            break
    return images


def _error(
    model: nn.Module,
    layers: dict[str, nn.Module],
    result: Quantization,
    images: Sequence[torch.Tensor],
    expected: list[list[torch.Tensor]],
) -> float:
    """The change of the outputs if all chosen layers compute in int8."""
    with _replaced({layer.name: layers[layer.name] for layer in result.layers if layer.int8}, result._steps):
        return _relative_change([_outputs(model, x) for x in images], expected)


class _Input:
    """A sample of a layer's input, with its smallest and largest number."""

    def __init__(self) -> None:
        self.numbers: list[torch.Tensor] = []
        self.low = self.high = 0.0
        self._sample = _SAMPLE
        self._generator = torch.Generator().manual_seed(0)

    def add(self, x: torch.Tensor) -> None:
        if x.numel() == 0:
            return
        low, high = (float(limit) for limit in x.detach().aminmax())
        self.low, self.high = min(self.low, low), max(self.high, high)
        flat = x.detach().flatten()
        picked = torch.randint(len(flat), (min(self._sample, len(flat)),), generator=self._generator)
        self.numbers.append(flat[picked].float())
        if sum(map(len, self.numbers)) > _MOST_NUMBERS:  # halve the sample of every batch, those to come as well
            self.numbers = [numbers[::2].clone() for numbers in self.numbers]
            self._sample = max(1, self._sample // 2)

    def steps(self) -> Steps:
        """The range with the least mean squared error of the sample, between 0 and the extremes."""
        numbers = torch.cat(self.numbers)
        if not (torch.tensor([self.low, self.high]).isfinite().all()):
            raise InputError("a linear layer's input is not finite on the calibration images: int8 cannot use them")
        low, high = self.low, self.high
        high = min((high * t for t in _SHRINK), key=lambda limit: _mean_squared_error(numbers, low, limit))
        low = min((low * t for t in _SHRINK), key=lambda limit: _mean_squared_error(numbers, limit, high))
        return _steps(low, high)


def _steps(low: float, high: float) -> Steps:
    """Steps for numbers from ``low`` <= 0 to ``high`` >= 0; 0 is exact."""
    scale = (high - low) / 255
    if not scale > torch.finfo(torch.float32).tiny:
        return Steps(1.0, 0)
    return Steps(scale, min(255, max(0, round(-low / scale))))


def _mean_squared_error(numbers: torch.Tensor, low: float, high: float) -> float:
    scale, zero_point = _steps(low, high)
    levels = (numbers / scale).round().clamp(-zero_point, 255 - zero_point)
    return float((levels * scale - numbers).square().mean())


@contextlib.contextmanager
def _recorded(layers: dict[str, nn.Module]) -> Iterator[dict[str, _Input]]:
    """Records the inputs of all layers within the context."""
    inputs = {name: _Input() for name in layers}

    def hook(record: _Input) -> Any:
        return lambda module, args: record.add(args[0])

    handles = [layer.register_forward_pre_hook(hook(inputs[name])) for name, layer in layers.items()]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _replaced(layers: dict[str, nn.Module], steps: dict[str, Steps]) -> Iterator[None]:
    """Within the context, these layers compute the reference of the int8 arithmetic."""

    def hook(steps: Steps) -> Any:
        def compute(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            weight, bias = module.weight, module.bias
            assert isinstance(weight, torch.Tensor)
            assert isinstance(bias, torch.Tensor)
            if weight.ndim == 2:
                return int8.reference(args[0], weight, bias, steps).to(output.dtype)
            y = int8.reference(args[0].permute(0, 2, 3, 1), weight.flatten(1), bias, steps)
            return y.permute(0, 3, 1, 2).to(output.dtype)

        return compute

    handles = [layer.register_forward_hook(hook(steps[name])) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _agreement(model: nn.Module, options: Int8, result: Quantization) -> float | None:
    """Fraction of the calibration images that keep their class in int8; None if the model has no classes."""
    layers = _linear_layers(model)
    chosen = {layer.name: layers[layer.name] for layer in result.layers if layer.int8}
    same = total = 0
    for x in options.batches():
        expected = _outputs(model, x)
        if len(expected) != 1 or expected[0].ndim != 2:
            return None
        with _replaced(chosen, result._steps):
            changed = _outputs(model, x)
        same += int((changed[0].argmax(1) == expected[0].argmax(1)).sum())
        total += len(x)
    return same / total


def _relative_change(outputs: list[list[torch.Tensor]], expected: list[list[torch.Tensor]]) -> float:
    """Root of the squared changes' sum over the squared outputs' sum, the largest among a model's outputs."""
    shapes, others = ([[t.shape for t in one] for one in each] for each in (outputs, expected))
    if shapes != others or len({len(one) for one in shapes}) > 1:
        raise ConfigError(
            "the shapes of this model's outputs depend on their values, so that int8 cannot compare them: quantize its "
            "backbone instead"
        )
    changes = []
    for i in range(len(expected[0])):
        pairs = [(a[i].double(), b[i].double()) for a, b in zip(outputs, expected, strict=True)]
        difference = sum(float((a - b).square().sum()) for a, b in pairs)
        size = sum(float(b.square().sum()) for _, b in pairs)
        changes.append((difference / size) ** 0.5 if size else float(difference > 0))
    return max(changes)


def _outputs(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """What costs are changes of, for a batch of images of any floating dtype."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), x.dtype)
    outputs = getattr(model, "comparable_outputs", model)(x.to(dtype))
    tensors = [t for t in tree_leaves(outputs) if isinstance(t, torch.Tensor) and t.is_floating_point()]
    if not tensors:
        raise ConfigError(
            "int8 takes networks of this library, and other models that return tensors for a batch of images; this "
            f"one returned {_described(outputs)}"
        )
    if not all(bool(t.isfinite().all()) for t in tensors):
        raise InputError("the model's output is not finite on the calibration images: int8 cannot use them")
    return tensors


def _compares_features(model: nn.Module) -> bool:
    return hasattr(model, "comparable_outputs") and model.backbone is not model


def _blocks(model: nn.Module) -> Iterator[tuple[str, FusedFocalNetBlock]]:
    for name, module in model.named_modules():
        if type(module) is FusedFocalNetBlock and block_weights(module) is not None:
            yield name, module


def _linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {
        _joined(prefix, name): block.get_submodule(name)
        for prefix, block in _blocks(model)
        for name in _LAYERS.values()
    }


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _described(x: Any) -> str:
    if isinstance(x, torch.Tensor):
        return f"a {str(x.dtype).removeprefix('torch.')} tensor of shape {tuple(x.shape)}"
    return f"a {type(x).__name__}"
