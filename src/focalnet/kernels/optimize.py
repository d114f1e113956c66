"""``optimize``: optimizes a model for this machine, in place and reversibly, and reports what it did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from focalnet.errors import ConfigError
from focalnet.kernels import int8 as int8_products
from focalnet.kernels import processor, quantization
from focalnet.kernels.frozen import Frozen, freeze, thaw
from focalnet.kernels.fused import FusedFocalModulation, FusedFocalNetBlock, FusedMlp
from focalnet.kernels.memory import keep_freed_memory
from focalnet.kernels.quantization import Int8, Quantization
from focalnet.kernels.read_only import refuse


@dataclass
class Optimization:
    """The changes that ``optimize`` made to a model; ``print`` shows them.

    Args:
        steps: one sentence per change.
        quantization: with ``int8``, what each linear layer costs and which of them compute in int8; else None.
    """

    steps: list[str] = field(default_factory=list)
    quantization: Quantization | None = None
    _reversals: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def undo(self) -> None:
        """Reverts all changes to the model; parameters that were not modified since get their old values back."""
        while self._reversals:
            self._reversals.pop()()

    def __str__(self) -> str:
        return "\n".join(self.steps) or "nothing to optimize"

    def _did(self, step: str, reversal: Callable[[], None] | None = None) -> None:
        self.steps.append(step)
        if reversal is not None:
            self._reversals.append(reversal)


def optimize(
    model: nn.Module,
    *,
    for_: Literal["inference", "training"] = "inference",
    dtype: torch.dtype | None = None,
    int8: Int8 | torch.Tensor | None = None,
    save_memory: bool = False,
) -> Optimization:
    """Optimizes ``model`` for inference or training on its device.

    Inference: sets evaluation mode and ``dtype``; on the CPU, freezes blocks and patch embeddings and packs their
    weights for oneDNN; on a GPU, compiles the model to one graph. Training: ``save_memory`` recomputes cheap values in
    the backward pass instead of saving them. On the CPU the process keeps freed memory for its next tensors.

    The weights of a frozen module are read-only and its submodules are not accessible: whatever would change it (an
    optimizer, loading, hooks on submodules, ``train()``, another dtype or device) or needs a gradient raises
    ``FrozenError``, which names ``undo()``. All other parameters of the model get ``requires_grad=False`` and may be
    changed. Saving, copying and pickling work as before.

    Args:
        model: any model that contains blocks of this library.
        for_: the purpose.
        dtype: dtype of parameters and outputs, for inference. Training keeps float32 parameters: run it under
            ``torch.autocast``.
        int8: calibration images, or ``Int8`` with more options: linear layers of blocks compute in int8, on processors
            with VNNI; everything else in ``dtype``. Fastest with ``dtype=torch.bfloat16``.
        save_memory: for training: saves a quarter of a step's memory at a few percent of its time.

    Returns:
        The changes. Its ``undo()`` reverts them exactly; parameters that were modified since keep their new values.

    Raises:
        ConfigError: the options contradict each other, or this model or processor does not support int8; or int8 loses
            more accuracy than ``Int8`` allows. The model is then unchanged.
        InputError: the calibration images are unsuitable.
        FrozenError: the model is already frozen.
    """
    if for_ not in ("inference", "training"):
        raise ConfigError(f'for_="{for_}" must be "inference" or "training"')
    if for_ == "training" and dtype is not None:
        raise ConfigError("training keeps float32 parameters: leave dtype out and run under torch.autocast")
    if for_ == "inference" and save_memory:
        raise ConfigError("save_memory is for training: inference keeps nothing for a backward pass")
    if for_ == "training" and int8 is not None:
        raise ConfigError("int8 is for inference: train in float32, then optimize")
    if any(isinstance(module, Frozen) for module in model.modules()):
        refuse("cannot optimize it again")
    done = Optimization()
    device = next((p.device.type for p in model.parameters()), "cpu")
    if for_ == "training":
        if save_memory:
            _recompute(model, done)
    else:
        options = Int8(int8) if isinstance(int8, torch.Tensor) else int8
        if options is not None:
            _check_int8(device, dtype or _dtype(model))
        try:
            _optimize_inference(model, device, dtype, options, done)
        except BaseException:
            done.undo()
            raise
    if device == "cpu" and keep_freed_memory():
        done._did("the process keeps freed memory for its next tensors (not reverted by undo)")
    return done


def _optimize_inference(
    model: nn.Module, device: str, dtype: torch.dtype | None, int8: Int8 | None, done: Optimization
) -> None:
    _evaluate(model, done)
    blocks: list[nn.Module] = []
    if int8 is not None:
        before = None if int8.evaluation is None else quantization.accuracy(model, int8.evaluation)
        done.quantization = quantization.calibrate(model, int8)
        blocks = _quantize(model, done)
    if dtype is not None:
        _convert(model, dtype, done)
    if device == "cpu":
        _freeze(model, done)
    elif device == "cuda":
        _compile(model, done)
    if done.quantization is not None:
        if not all(isinstance(block, Frozen) for block in blocks):
            raise ConfigError(f"int8 needs every block frozen, but {'; '.join(done.steps)}")
        if int8 is not None and int8.evaluation is not None and before is not None:
            after = quantization.accuracy(model, int8.evaluation)
            done.quantization.accuracy = before, after
            if before - after > int8.max_drop:
                raise ConfigError(
                    f"int8 loses {before - after:.2%} of top-1 accuracy ({before:.2%} to {after:.2%}), more than "
                    f"max_drop={int8.max_drop}: lower max_error and max_layer_error of Int8, or give more images"
                )
        for step in done.quantization.summary():
            done._did(step)


def _check_int8(device: str, dtype: torch.dtype) -> None:
    if device != "cpu":
        raise ConfigError(f"int8 runs on the CPU, and this model is on {device}: model.cpu() moves it")
    if dtype not in (torch.float32, torch.bfloat16):
        raise ConfigError(f"int8 needs dtype float32 or bfloat16 beside it, not {str(dtype).removeprefix('torch.')}")
    reason = int8_products.why_not()
    if reason is not None:
        raise ConfigError(reason)


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _quantize(model: nn.Module, done: Optimization) -> list[nn.Module]:
    """Marks the blocks whose linear layers ``freeze`` packs in int8; returns them."""
    assert done.quantization is not None
    blocks = quantization.assign(model, done.quantization)

    def reverse() -> None:
        for block in blocks:
            del block.__dict__["int8_steps"]

    done._reversals.append(reverse)
    return blocks


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
        done._did(
            f"{len(tensors)} parameters are {str(dtype).removeprefix('torch.')}: inputs must have that dtype", reverse
        )
    if dtype == torch.bfloat16 and tensors and tensors[0].device.type == "cpu" and not processor.computes_bfloat16():
        done._did("this processor emulates bfloat16: float32 would be faster on it")


# Batch norms are not folded into the convolutions before them: they take half a percent of UPerNet's time.
def _freeze(model: nn.Module, done: Optimization) -> None:
    frozen, reasons = freeze(list(model.modules()))
    for reason, count in Counter(reasons).items():
        done._did(f"{count} blocks or patch embeddings are not frozen: {reason}")
    if not frozen:
        return
    trainable = [p for p in model.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)

    def reverse() -> None:
        for parameter in trainable:
            parameter.requires_grad_(True)
        thaw(frozen)

    blocks = sum(isinstance(module, FusedFocalNetBlock) for module in frozen)
    counts = f"{blocks} blocks and {len(frozen) - blocks} patch embeddings"
    done._did(f"{counts} are frozen, with weights packed for oneDNN; undo() thaws them", reverse)


def _recompute(model: nn.Module, done: Optimization) -> None:
    modules = [m for m in model.modules() if isinstance(m, FusedFocalModulation | FusedMlp) and not m.recompute]
    for module in modules:
        module.recompute = True

    def reverse() -> None:
        for module in modules:
            del module.recompute

    if modules:
        done._did("GELU and the modulated query are recomputed in the backward pass, not saved", reverse)


def _compile(model: nn.Module, done: Optimization) -> None:
    if model._compiled_call_impl is not None:
        return
    model.compile(fullgraph=True)

    def reverse() -> None:
        model._compiled_call_impl = None

    done._did("compiled to one graph, at the first call with each input shape", reverse)
