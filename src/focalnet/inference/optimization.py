"""``optimize``: what is best for a model on this machine, in place, said aloud and taken back on demand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from focalnet import ops
from focalnet.backbones.focalnet import Stage
from focalnet.errors import ConfigError
from focalnet.layers import PatchEmbed, StraightBlocks
from focalnet.layers.linear import Linear, PointwiseConv
from focalnet.ops import processor
from focalnet.ops.memory import keep_freed_memory
from focalnet.ops.pointwise import DTYPES


@dataclass
class Optimization:
    """What ``optimize`` did to a model; ``print`` shows it.

    Args:
        steps: one sentence for each thing done.
    """

    steps: list[str] = field(default_factory=list)
    _reversals: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def undo(self) -> None:
        """Takes everything back that concerns the model; it then is what it was, to the bit."""
        while self._reversals:
            self._reversals.pop()()

    def __str__(self) -> str:
        return "\n".join(self.steps) or "nothing to do here"

    def _did(self, step: str, reversal: Callable[[], None] | None = None) -> None:
        self.steps.append(step)
        if reversal is not None:
            self._reversals.append(reversal)


def optimize(
    model: nn.Module,
    *,
    for_: Literal["inference", "training"] = "inference",
    dtype: torch.dtype | None = None,
    save_memory: bool = False,
) -> Optimization:
    """Applies what is best for ``model`` on the machine it is on.

    Inference: evaluation mode and ``dtype``; on the CPU, weights also in the order oneDNN works in and blocks as a
    straight line of operations; on a GPU, compilation to one graph. Training: ``save_memory`` computes cheap values
    again in the backward pass instead of keeping them. On the CPU the process keeps freed memory for its next tensors.

    Args:
        model: any model of this library, or one that holds its blocks.
        for_: what it is optimized for.
        dtype: what parameters become, for inference; the outputs are those of that dtype. Training keeps float32
            parameters: run it under ``torch.autocast``.
        save_memory: for training: a quarter of the memory of a step for a few percent of its time.

    Returns:
        What was done; its ``undo()`` takes it back. The original parameters live as long as it does.

    Raises:
        ConfigError: options that do not go together.
    """
    if for_ not in ("inference", "training"):
        raise ConfigError(f'for_="{for_}" must be "inference" or "training"')
    if for_ == "training" and dtype is not None:
        raise ConfigError("training keeps float32 parameters: leave dtype out and run under torch.autocast")
    if for_ == "inference" and save_memory:
        raise ConfigError("save_memory is for training: inference keeps nothing for a backward pass")
    done = Optimization()
    device = next((p.device.type for p in model.parameters()), "cpu")
    if for_ == "training":
        if save_memory:
            _recompute(model, done)
    else:
        _evaluate(model, done)
        if dtype is not None:
            _convert(model, dtype, done)
        if device == "cpu":
            _pack(model, done)
        elif device == "cuda":
            _compile(model, done)
    if device == "cpu" and keep_freed_memory():
        done._did("the process keeps freed memory for its next tensors (not taken back by undo)")
    return done


def _evaluate(model: nn.Module, done: Optimization) -> None:
    training = [module for module in model.modules() if module.training]
    if training:

        def reverse() -> None:
            for module in training:
                module.training = True

        model.eval()
        done._did("evaluation mode", reverse)


def _convert(model: nn.Module, dtype: torch.dtype, done: Optimization) -> None:
    tensors = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point() and t.dtype != dtype]
    originals = [t.data for t in tensors]
    for t in tensors:
        t.data = t.data.to(dtype)

    def reverse() -> None:
        for t, original in zip(tensors, originals, strict=True):
            t.data = original

    if tensors:
        done._did(f"{len(tensors)} parameters are {str(dtype).removeprefix('torch.')}: give it inputs of that", reverse)
    if dtype == torch.bfloat16 and tensors and tensors[0].device.type == "cpu" and not processor.computes_bfloat16():
        done._did("this processor emulates bfloat16: float32 would be faster on it")


# Batch norms are not folded into the convolutions before them: of UPerNet's time they are half a percent.
def _pack(model: nn.Module, done: Optimization) -> None:
    layers = [m for m in model.modules() if isinstance(m, Linear | PointwiseConv) and m.weight.dtype in DTYPES]
    embeds = [m for m in model.modules() if isinstance(m, PatchEmbed) and m.proj.weight.dtype in DTYPES]
    for layer in layers:
        layer.packed = ops.PackedWeight(layer.weight.flatten(1))
    for embed in embeds:
        embed.packed = ops.PackedWeight(embed.proj.weight, stride=embed.stride, padding=int(embed.proj.padding[0]))
    stages = [m for m in model.modules() if isinstance(m, Stage) and StraightBlocks.fits(m)]
    for stage in stages:
        stage.straight = StraightBlocks(stage)

    def reverse() -> None:
        for part in (*layers, *embeds):
            part.packed = None
        for stage in stages:
            stage.straight = None

    if layers:
        kinds = f"{len(layers)} linear layers and {len(embeds)} patch embeddings"
        done._did(f"weights of {kinds} also in the order oneDNN works in", reverse)
    if stages:
        done._did(f"blocks of {len(stages)} stages as a straight line of operations, without calling their modules")


def _recompute(model: nn.Module, done: Optimization) -> None:
    layers = [m for m in model.modules() if isinstance(m, Linear) and not m.recompute]
    for layer in layers:
        layer.recompute = True

    def reverse() -> None:
        for layer in layers:
            layer.recompute = False

    if layers:
        done._did("GELU and the modulated query are computed again in the backward pass, not kept", reverse)


def _compile(model: nn.Module, done: Optimization) -> None:
    if model._compiled_call_impl is not None:
        return
    model.compile(fullgraph=True)

    def reverse() -> None:
        model._compiled_call_impl = None

    done._did("compiled to one graph, at the first call with each shape of input", reverse)
