"""Traces ``Model.predict_tensors`` once for images of any number and size."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from focalnet.errors import ConfigError, ExportError
from focalnet.models import Model
from focalnet.ops import modes

#: Batch size, height and width of the images that are traced: sides differ, and no feature map has a side of 1.
TRACED = (3, 288, 416)
_EXPORTER_WARNINGS = (DeprecationWarning, FutureWarning, UserWarning)  # of PyTorch and onnxscript, about themselves


@dataclass(frozen=True)
class Trace:
    """A network as a graph of PyTorch's operations.

    Args:
        program: takes ``inputs`` and returns a tuple of ``outputs``.
        inputs: names.
        outputs: names.
        least_side: least height and width in pixels that the graph holds for.
    """

    program: ExportedProgram
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    least_side: int


class _Function(nn.Module):
    """A network whose ``forward`` is ``predict_tensors``, without the inputs that it does not use."""

    def __init__(self, model: Model[Any, Any], inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.named(*inputs).values())

    def named(self, images: Tensor, *sizes: Tensor) -> dict[str, Tensor]:
        """The outputs by name."""
        if not sizes:
            unused = images.new_zeros((images.shape[0], 2), dtype=torch.int64)
            sizes = (unused, unused)
        return self.model.predict_tensors(images, *sizes)


def trace(model: Model[Any, Any], *, grid_sample: bool) -> Trace:
    """The graph of a network, of standard operations only, for any batch size, height and width.

    Args:
        model: in evaluation mode, float32, on the CPU.
        grid_sample: whether the graph may contain ``grid_sample``.

    Raises:
        ExportError: the network does not depend on its input alone, or only takes images of one size.
        ConfigError: its family has no ``predict_tensors``.
        FrozenError: it was optimized for inference.
    """
    batch, height, width = TRACED
    inputs = ("images", "sizes", "original_sizes") if not model.config.classifies else ("images",)
    channels = model.backbone.shape.in_chans
    sizes = torch.tensor([(height, width)] * batch)
    # Two tensors: the exporter would take one that is given twice for one input.
    example = (torch.zeros(batch, channels, height, width), sizes, sizes.clone())[: len(inputs)]
    function = _Function(model, inputs).eval()
    of_batch = Dim("batch")
    shapes = ({0: of_batch, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}, {0: of_batch}, {0: of_batch})[: len(inputs)]
    with torch.no_grad(), modes.grid_sample(grid_sample), warnings.catch_warnings():
        for category in _EXPORTER_WARNINGS:
            warnings.simplefilter("ignore", category)
        outputs = tuple(function.named(*example))
        try:
            program = torch.export.export(function, example, dynamic_shapes={"inputs": shapes}, strict=False)
        except torch._dynamo.exc.UserError as error:
            reason = " ".join(str(error).split())[:300]
            raise ExportError(
                f"this {type(model).__name__} cannot be traced for images of any size: {reason}"
            ) from error
    first = program.graph_signature.user_inputs[0]
    image = next(node for node in program.graph.nodes if node.name == first)
    sides = [program.range_constraints[side.node.expr] for side in image.meta["val"].shape[2:]]
    return Trace(program, inputs, outputs, max(int(side.lower) for side in sides))


def check_exportable(model: Any) -> None:
    """Raises ConfigError for what is not a network of ours with classes, in float32 on the CPU."""
    if not isinstance(model, Model) or model.config.num_classes == 0:
        raise ConfigError(
            f"this {type(model).__name__} has no classes to predict: a Classifier, a detector or a segmenter can be "
            "exported"
        )
    if model.dtype != torch.float32 or model.device.type != "cpu":
        raise ConfigError(f"the model is {model.dtype} on {model.device}: export model.float().cpu()")
