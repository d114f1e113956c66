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
        self._undo_after(0, len(self.steps))

    def _undo_after(self, reversals: int, steps: int) -> None:
        """Reverts all changes but the first ones, and forgets their sentences."""
        while len(self._reversals) > reversals:
            self._reversals.pop()()
        del self.steps[steps:]

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
        int8: calibration images, or ``Int8`` with more options, such as what ``focalnet.int8_from_data`` makes: linear
            layers of blocks compute in int8, on processors with VNNI; everything else in ``dtype``. Fastest with
            ``dtype=torch.bfloat16``.
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
    if int8 is not None:
        _optimize_int8(model, dtype, int8, done)
        return
    if dtype is not None:
        _convert(model, dtype, done)
    if device == "cpu":
        _freeze(model, done)
    elif device == "cuda":
        _compile(model, done)


def _optimize_int8(model: nn.Module, dtype: torch.dtype | None, int8: Int8, done: Optimization) -> None:
    """Freezes blocks with int8 layers; while the model loses too much, more of them stay in higher precision."""
    before = quantization.measure(model, int8)
    chosen = done.quantization = quantization.calibrate(model, int8)
    start, more = (len(done._reversals), len(done.steps)), 1
    refusals: list[tuple[float, str]] = []
    while True:
        proof = quantization.Proof(model, int8, chosen)
        blocks = _quantize(model, done)
        if dtype is not None:
            _convert(model, dtype, done)
        _freeze(model, done)
        if not all(isinstance(block, Frozen) for block in blocks):
            raise ConfigError(f"int8 needs every block frozen, but {'; '.join(done.steps)}")
        proof.check(model)
        if not before:
            break
        after = quantization.measure(model, int8)
        chosen.metrics = {name: (value, after.get(name, 0.0)) for name, value in before.items()}
        if chosen.lost() <= int8.max_drop:
            break
        refusals.append((chosen.lost(), _refusal(chosen, int8.max_drop)))
        if len(chosen.layers) - len(chosen.kept) <= more:
            raise ConfigError(min(refusals)[1])
        done._undo_after(*start)
        quantization.keep_more(model, int8, chosen, more)
        more *= 2
    for step in chosen.summary():
        done._did(step)


def _refusal(chosen: Quantization, max_drop: float) -> str:
    name, (before, after) = max(chosen.metrics.items(), key=lambda item: item[1][0] - item[1][1])
    return (
        f"int8 loses {before - after:.2%} of {name} ({before:.2%} to {after:.2%}) with {len(chosen.kept)} of "
        f"{len(chosen.layers)} layers in higher precision, more than max_drop={max_drop}: give more images, raise "
        "max_drop or leave int8 out"
    )


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
