"""``optimize``: what is best for a model on this machine, in place, said aloud and taken back on demand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from focalnet.errors import ConfigError
from focalnet.kernels import processor
from focalnet.kernels.frozen import Frozen, freeze, thaw
from focalnet.kernels.fused import FusedFocalModulation, FusedFocalNetBlock, FusedMlp
from focalnet.kernels.memory import keep_freed_memory
from focalnet.kernels.read_only import refuse


@dataclass
class Optimization:
    """What ``optimize`` did to a model; ``print`` shows it.

    Args:
        steps: one sentence for each thing done.
    """

    steps: list[str] = field(default_factory=list)
    _reversals: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def undo(self) -> None:
        """Takes everything back that concerns the model; parameters that nobody has changed are what they were."""
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

    Inference: evaluation mode and ``dtype``; on the CPU, blocks and patch embeddings are frozen, with weights in the
    order oneDNN works in; on a GPU, compilation to one graph. Training: ``save_memory`` computes cheap values again in
    the backward pass instead of keeping them. On the CPU the process keeps freed memory for its next tensors.

    A frozen module shows its weights read-only, and its parts not at all: what would change it (an optimizer, loading,
    hooks on its parts, ``train()``, another dtype or device) or needs a gradient raises ``FrozenError``, which names
    ``undo()``. All other parameters of the model get ``requires_grad=False`` and may be changed. Saving, copying and
    pickling work as before.

    Args:
        model: any model of this library, or one that holds its blocks.
        for_: what it is optimized for.
        dtype: what parameters become, for inference; the outputs are those of that dtype. Training keeps float32
            parameters: run it under ``torch.autocast``.
        save_memory: for training: a quarter of the memory of a step for a few percent of its time.

    Returns:
        What was done; its ``undo()`` takes it back, to the bit. Parameters that were changed since keep their new
        values.

    Raises:
        ConfigError: options that do not go together.
        FrozenError: the model is frozen already.
    """
    if for_ not in ("inference", "training"):
        raise ConfigError(f'for_="{for_}" must be "inference" or "training"')
    if for_ == "training" and dtype is not None:
        raise ConfigError("training keeps float32 parameters: leave dtype out and run under torch.autocast")
    if for_ == "inference" and save_memory:
        raise ConfigError("save_memory is for training: inference keeps nothing for a backward pass")
    if any(isinstance(module, Frozen) for module in model.modules()):
        refuse("optimizing once more")
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
            _freeze(model, done)
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
            unchanged = t.dtype == dtype and torch.equal(t, original.to(t))
            t.data = original if unchanged else t.data.to(original.dtype)

    if tensors:
        done._did(f"{len(tensors)} parameters are {str(dtype).removeprefix('torch.')}: give it inputs of that", reverse)
    if dtype == torch.bfloat16 and tensors and tensors[0].device.type == "cpu" and not processor.computes_bfloat16():
        done._did("this processor emulates bfloat16: float32 would be faster on it")


# Batch norms are not folded into the convolutions before them: of UPerNet's time they are half a percent.
def _freeze(model: nn.Module, done: Optimization) -> None:
    frozen, reasons = freeze(list(model.modules()))
    for reason, count in Counter(reasons).items():
        done._did(f"{count} blocks or patch embeddings are not frozen: {reason}")
    if not frozen:
        return
    rest = [p for p in model.parameters() if p.requires_grad]
    for parameter in rest:
        parameter.requires_grad_(False)

    def reverse() -> None:
        for parameter in rest:
            parameter.requires_grad_(True)
        thaw(frozen)

    blocks = sum(isinstance(module, FusedFocalNetBlock) for module in frozen)
    kinds = f"{blocks} blocks and {len(frozen) - blocks} patch embeddings"
    done._did(f"{kinds} are frozen, their weights in the order oneDNN works in; undo() thaws them", reverse)


def _recompute(model: nn.Module, done: Optimization) -> None:
    parts = [m for m in model.modules() if isinstance(m, FusedFocalModulation | FusedMlp) and not m.recompute]
    for part in parts:
        part.recompute = True

    def reverse() -> None:
        for part in parts:
            del part.recompute

    if parts:
        done._did("GELU and the modulated query are computed again in the backward pass, not kept", reverse)


def _compile(model: nn.Module, done: Optimization) -> None:
    if model._compiled_call_impl is not None:
        return
    model.compile(fullgraph=True)

    def reverse() -> None:
        model._compiled_call_impl = None

    done._did("compiled to one graph, at the first call with each shape of input", reverse)
