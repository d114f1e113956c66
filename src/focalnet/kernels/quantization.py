"""From calibration images to int8: ranges of the linear layers' inputs, and what each layer costs in accuracy.

All of this runs on PyTorch's float operations, before the model is frozen: hooks record the inputs of the linear layers
and then replace single layers by the reference of the int8 arithmetic.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
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
_SHRINK = [0.94**i for i in range(40)]  # candidates for the limits of a range, relative to the largest number


@dataclass(frozen=True)
class Int8:
    """How ``optimize`` computes linear layers in int8.

    Args:
        images: calibration images, a batch or a sequence of batches, preprocessed as the model's input; some hundred
            images like those of the application. Numbers beyond the range of these are clipped later.
        evaluation: other images with their classes, as pairs of ``(B, 3, H, W)`` and ``(B,)``; a classifier's accuracy
            on them is measured before and after.
        max_drop: largest accepted loss of accuracy on ``evaluation``, as a fraction.
        max_layer_error: a layer that alone changes the model's output by more than this stays in higher precision; the
            change is relative, in the root mean square over all calibration images in ``sensitivity_images``.
        max_error: the same for all layers together: those that cost most stay in higher precision until it is met.
        sensitivity_images: number of calibration images on which costs are measured.
    """

    images: torch.Tensor | Sequence[torch.Tensor]
    evaluation: Sequence[tuple[torch.Tensor, torch.Tensor]] | None = None
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
        for x in self.batches():
            if not isinstance(x, torch.Tensor) or x.ndim != 4 or not x.is_floating_point() or x.numel() == 0:
                raise InputError(f"calibration images must be float batches (B, C, H, W), got {_described(x)}")
            if not bool(x.isfinite().all()):
                raise InputError("calibration images contain numbers that are not finite")
        if not self.batches():
            raise InputError("int8 needs calibration images, got none")

    def batches(self) -> list[torch.Tensor]:
        """The calibration images, batch by batch."""
        return [self.images] if isinstance(self.images, torch.Tensor) else list(self.images)


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
        accuracy: top-1 accuracy on ``Int8.evaluation`` before and after, as fractions; None without it.
    """

    layers: list[LayerCost]
    error: float = 0.0
    agreement: float | None = None
    accuracy: tuple[float, float] | None = None
    _steps: dict[str, Steps] = field(default_factory=dict, repr=False)

    @property
    def kept(self) -> list[LayerCost]:
        """The layers that stay in higher precision."""
        return [layer for layer in self.layers if not layer.int8]

    def summary(self) -> list[str]:
        """The result in sentences."""
        count = len(self.layers) - len(self.kept)
        lines = [f"{count} of {len(self.layers)} linear layers compute in int8"]
        if self.kept:
            names = ", ".join(f"{layer.name} ({layer.error:.1%})" for layer in self.kept)
            lines.append(f"in higher precision, for their change of the output: {names}")
        same = "" if self.agreement is None else f"; {self.agreement:.1%} of the calibration images keep their class"
        lines.append(f"int8 changes the output by {self.error:.1%}{same}")
        if self.accuracy is not None:
            before, after = self.accuracy
            lines.append(f"top-1 accuracy {before:.2%} before, {after:.2%} in int8")
        return lines

    def __str__(self) -> str:
        width = max([len(layer.name) for layer in self.layers], default=5)
        rows = [f"{'layer':{width}}  {'weight':>11}  {'input from':>10}  {'to':>10}  {'change of output':>16}  int8"]
        for layer in self.layers:
            rows.append(
                f"{layer.name:{width}}  {'x'.join(map(str, layer.shape)):>11}  {layer.low:10.3g}  {layer.high:10.3g}  "
                f"{layer.error:16.3%}  {'yes' if layer.int8 else 'no'}"
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
    batches = options.batches()
    with torch.no_grad():
        with _recorded(layers) as inputs:
            for x in batches:
                _outputs(model, x)
        result = Quantization([])
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
        changed = _predictions(model, batches, layers, result)
        plain = _predictions(model, batches, layers, None)
    if changed is not None and plain is not None:
        result.agreement = float((changed == plain).double().mean())
    return result


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
    images: list[torch.Tensor] = []
    wanted = options.sensitivity_images
    for x in options.batches():
        if wanted > 0:
            images.append(x[:wanted])
            wanted -= len(images[-1])
    expected = [_outputs(model, x) for x in images]

    def error(names: Sequence[str]) -> float:
        with _replaced({name: layers[name] for name in names}, result._steps):
            return _relative_change([_outputs(model, x) for x in images], expected)

    for layer in result.layers:
        if not int8.fits(layers[layer.name].weight):  # type: ignore[arg-type]
            layer.error, layer.int8 = float("inf"), False
            continue
        layer.error = error([layer.name])
        layer.int8 = layer.error <= options.max_layer_error
    for worst in sorted(result.layers, key=lambda layer: -layer.error):
        result.error = error([layer.name for layer in result.layers if layer.int8])
        if result.error <= options.max_error:
            return
        worst.int8 = False
    result.error = 0.0


class _Input:
    """A sample of a layer's input, with its smallest and largest number."""

    def __init__(self) -> None:
        self.numbers: list[torch.Tensor] = []
        self.low = self.high = 0.0
        self._generator = torch.Generator().manual_seed(0)

    def add(self, x: torch.Tensor) -> None:
        if x.numel() == 0:
            return
        low, high = (float(limit) for limit in x.detach().aminmax())
        self.low, self.high = min(self.low, low), max(self.high, high)
        flat = x.detach().flatten()
        picked = torch.randint(len(flat), (min(_SAMPLE, len(flat)),), generator=self._generator)
        self.numbers.append(flat[picked].float())

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


def _predictions(
    model: nn.Module, batches: Sequence[torch.Tensor], layers: dict[str, nn.Module], result: Quantization | None
) -> torch.Tensor | None:
    """The classes of the calibration images, in int8 if ``result`` is given; None if the model has no classes."""
    chosen = {} if result is None else {layer.name: layers[layer.name] for layer in result.layers if layer.int8}
    with _replaced(chosen, {} if result is None else result._steps):
        outputs = [_outputs(model, x) for x in batches]
    if any(len(output) != 1 or output[0].ndim != 2 for output in outputs):
        return None
    return torch.cat([output[0].argmax(1) for output in outputs])


def _relative_change(outputs: list[list[torch.Tensor]], expected: list[list[torch.Tensor]]) -> float:
    """Root of the squared changes' sum over the squared outputs' sum, the largest among a model's outputs."""
    changes = []
    for i in range(len(expected[0])):
        pairs = [(a[i].double(), b[i].double()) for a, b in zip(outputs, expected, strict=True)]
        difference = sum(float((a - b).square().sum()) for a, b in pairs)
        size = sum(float(b.square().sum()) for _, b in pairs)
        changes.append((difference / size) ** 0.5 if size else float(difference > 0))
    return max(changes)


def _outputs(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    tensors = [t for t in tree_leaves(model(x)) if isinstance(t, torch.Tensor) and t.is_floating_point()]
    if not tensors:
        raise ConfigError("int8 takes models that return tensors for a batch of images: classifiers and backbones")
    if not all(bool(t.isfinite().all()) for t in tensors):
        raise InputError("the model's output is not finite on the calibration images: int8 cannot use them")
    return tensors


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
