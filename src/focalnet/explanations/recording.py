"""Records what the blocks of a FocalNet compute in a forward pass, and reads their kernels.

It works on the networks of this library, whole detectors and segmenters too, and on those of timm and transformers:
their focal modulations have the same submodules under other names. Forward hooks record the tensors and are removed
afterwards; nothing is stored on modules.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from focalnet.errors import ConfigError, did_you_mean
from focalnet.models import Model
from focalnet.models.backbone import FocalNet
from focalnet.nn import FocalModulation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class BlockRecord:
    """What one block computed in the last forward pass, detached, on the device and in the type it had.

    Args:
        gates: ``(B, L + 1, H, W)``, raw values; the last channel is the gate of the global level.
        modulator: ``(B, C, H, W)``, what multiplies the query (after the projection ``h``).
    """

    gates: Tensor
    modulator: Tensor


class Anatomy(NamedTuple):
    """Where a library's focal modulation has its parts.

    Args:
        module: the Python module that defines the class, and the name of the class.
        f, h: names of the first projection, and of the one that gives the modulator.
        levels: name of the attribute with the number of focal levels.
        channels: dimension of the channels in the output of ``f``.
    """

    module: tuple[str, str]
    f: str
    h: str
    levels: str
    channels: int


_ANATOMIES = (
    Anatomy((FocalModulation.__module__, "FocalModulation"), "f", "h", "levels", -1),
    Anatomy(("timm.models.focalnet", "FocalModulation"), "f", "h", "focal_level", 1),
    Anatomy(
        ("transformers.models.focalnet.modeling_focalnet", "FocalNetModulation"),
        *("projection_in", "projection_context", "focal_level", -1),
    ),
)


@dataclass(eq=False)
class Trace:
    """What one block computed in the last forward pass, as the graph of derivatives holds it.

    Args:
        levels: focal levels L.
        channels: dimension of the channels in ``projected``.
        projected: the output of ``f``: query C, context C, gates L + 1 along ``channels``.
        modulator: ``(B, C, H, W)``.
        output: of the block, as the library has it; see ``features``.
        read: what the rest of the network reads of a stage, likewise: the output of its last block, after the norm that
            the network applies to it, if any.
    """

    levels: int
    channels: int
    projected: Tensor
    modulator: Tensor
    output: Tensor | None = None
    read: Tensor | None = None

    def split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, context ``(B, C, H, W)`` and gates ``(B, L + 1, H, W)`` of ``projected``, or of a derivative by it."""
        width = self.modulator.shape[1]
        moved = projected.movedim(self.channels, 1)
        query, context, gates = moved.split_with_sizes((width, width, self.levels + 1), 1)
        return query, context, gates

    def features(self, output: Tensor) -> Tensor:
        """``output``, or a derivative by it, as ``(B, C, H, W)``."""
        height, width = self.modulator.shape[2:]
        if output.ndim == 3:  # transformers' (B, H W, C)
            output = output.reshape(len(output), height, width, -1)
        return output if self.channels == 1 else output.movedim(-1, 1)


def root(model: nn.Module) -> nn.Module:
    """The module whose submodules name the blocks: the backbone of our networks, otherwise the model itself.

    Compiled models are replaced by the modules that they were compiled from.

    Raises:
        ConfigError: the model has no blocks to look into.
    """
    model = uncompiled(model)
    found: nn.Module = model.backbone if isinstance(model, Model) else model
    if not _modulations(found):
        raise ConfigError(
            f"a {type(model).__name__} has no FocalNet block to look into: explain the FocalNet that focalnet.load, "
            "timm or transformers gives, before it is scripted, exported or converted"
        )
    return found


def has_modulation(model: nn.Module) -> bool:
    """Whether a model has focal modulation, of this library, timm or transformers."""
    return bool(_modulations(uncompiled(model)))


def uncompiled(model: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` wrapped; any other module as it is."""
    original = model.__dict__.get("_modules", {}).get("_orig_mod")
    return original if isinstance(original, nn.Module) else model


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Runs compiled modules uncompiled, since compiled code does not call hooks that are registered later."""
    modules = list(model.modules())
    if not any(m._compiled_call_impl is not None or uncompiled(m) is not m for m in modules):
        yield  # the stance is the whole process's
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def of_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that does nothing in passes of other threads, which may use the model at the same time."""
    owner = threading.get_ident()

    def called(*arguments: Any) -> Any:
        return hook(*arguments) if threading.get_ident() == owner else None

    return called


def block_names(model: nn.Module) -> list[str]:
    """Names of all blocks, first to last, as in ``named_modules()`` of the backbone: ``"layers.0.blocks.0"``, ..."""
    return [name.rpartition(".")[0] for name in _modulations(root(model))]


@contextmanager
def record(model: nn.Module, blocks: Sequence[str] | None = None) -> Iterator[dict[str, BlockRecord]]:
    """Records gates and modulators of chosen blocks while the body of the ``with`` statement runs the model.

        with torch.inference_mode(), record(model, ["layers.3.blocks.1"]) as records:
            logits = model(images)
        records["layers.3.blocks.1"].gates

    It uses forward hooks and removes them afterwards; nothing is stored on modules. Compiled models run uncompiled
    within the ``with`` statement.

    Args:
        model: a network of this library, or a FocalNet of timm or transformers.
        blocks: names of blocks; default: the last one of each stage.

    Raises:
        ConfigError: no such block, or a model without blocks.
        FrozenError: a model frozen by ``focalnet.optimize``; the message says how to thaw it.
    """
    records: dict[str, BlockRecord] = {}

    def keep(name: str, trace: Trace) -> None:
        _, _, gates = trace.split(trace.projected.detach())
        records[name] = BlockRecord(gates, trace.modulator.detach())

    with _hooks(model, blocks, keep):
        yield records


@contextmanager
def trace(model: nn.Module, blocks: Sequence[str] | None = None) -> Iterator[dict[str, Trace]]:
    """Like ``record``, with tensors that derivatives can be taken by, and with the outputs of the blocks."""
    traces: dict[str, Trace] = {}
    with _hooks(model, blocks, traces.__setitem__):
        yield traces


def kernels(model: nn.Module, blocks: Sequence[str] | None = None) -> dict[str, list[NDArray[np.float32]]]:
    """Depthwise kernels ``(k, k)`` of each focal level, averaged over channels, by block, as in the paper's figure.

    Args:
        model: a network of this library, or a FocalNet of timm or transformers.
        blocks: names of blocks; default: the last one of each stage.

    Raises:
        ConfigError: no such block.
    """
    return {
        name: [weight.mean((0, 1)).cpu().numpy() for weight in weights]
        for name, weights in kernel_weights(model, blocks).items()
    }


def kernel_weights(model: nn.Module, blocks: Sequence[str] | None = None) -> dict[str, list[Tensor]]:
    """Depthwise kernels ``(C, 1, k, k)`` of each focal level, float32, by block."""
    found = root(model)
    modulations = _modulations(found)
    weights = {}
    for name in chosen(found, blocks):
        levels = modulations[f"{name}.modulation"][0].get_submodule("focal_layers").children()
        weights[name] = [level.get_parameter("0.weight").detach().float() for level in levels]
    return weights


def chosen(found: nn.Module, blocks: Sequence[str] | None) -> list[str]:
    """The names in network order, each once; default: the last block of each stage.

    Args:
        found: the module that ``root`` gives.
        blocks: names of blocks, with or without ``"backbone."`` before them.
    """
    known = [name.rpartition(".")[0] for name in _modulations(found)]
    if blocks is None:
        return list({stage_of(name): name for name in known}.values())  # a later block replaces an earlier one
    names = [name if name in known else name.removeprefix("backbone.") for name in blocks]
    for name in names:
        if name not in known:
            raise ConfigError(f'no block "{name}"{did_you_mean(name, known)}; the blocks are {", ".join(known)}')
    return [name for name in known if name in names]


def stage_of(block: str) -> str:
    """The name of the stage that a block is in: ``"layers.3"`` of ``"layers.3.blocks.1"``."""
    return block.rsplit(".", 2)[0]


def _modulations(model: nn.Module) -> dict[str, tuple[nn.Module, Anatomy]]:
    """Every focal modulation of a model by its name."""
    known = [
        (getattr(sys.modules[anatomy.module[0]], anatomy.module[1]), anatomy)
        for anatomy in _ANATOMIES
        if anatomy.module[0] in sys.modules
    ]
    return {
        name: (module, anatomy)
        for name, module in model.named_modules()
        for cls, anatomy in known
        if isinstance(module, cls)
    }


@contextmanager
def _hooks(model: nn.Module, blocks: Sequence[str] | None, keep: Any) -> Iterator[None]:
    found = root(model)
    modulations = _modulations(found)
    modules = dict(found.named_modules())
    with ExitStack() as stack:
        stack.enter_context(eager(found))
        for name in chosen(found, blocks):
            norm = modules.get(_norm_after(found, name) or "no norm")
            for handle in _hook(modules[name], *modulations[f"{name}.modulation"], norm, name, keep):
                stack.callback(handle.remove)
        yield


def _norm_after(found: nn.Module, block: str) -> str | None:
    """The name of the norm that a network applies to the output of a block before it reads it; it need not exist."""
    known = block_names(found)
    last = {stage_of(name): name for name in known}
    if block not in last.values():
        return None
    if isinstance(found, FocalNet):
        return f"norm{list(last).index(stage_of(block))}"
    if block != known[-1]:
        return None
    return "norm" if hasattr(found, "norm") else f"{block.partition('.')[0]}.layernorm"  # transformers' is in focalnet


def _hook(
    block: nn.Module, modulation: nn.Module, anatomy: Anatomy, norm: nn.Module | None, name: str, keep: Any
) -> tuple[RemovableHandle, ...]:
    """The output of ``f`` ends in the gates, that of ``h`` is the modulator; ``f`` runs before ``h``."""
    parts: Mapping[str, nn.Module] = dict(modulation.named_children())
    levels: int = getattr(modulation, anatomy.levels)
    projected: list[Tensor] = []
    made: list[Trace] = []

    def on_f(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        projected[:] = [output]

    def on_h(_module: nn.Module, _inputs: Any, output_BCHW: Tensor) -> None:
        made[:] = [Trace(levels, anatomy.channels, projected.pop(), output_BCHW)]
        keep(name, made[0])

    def on_block(_module: nn.Module, _inputs: Any, output: Any) -> None:
        made[0].output = made[0].read = output[0] if isinstance(output, tuple) else output

    def on_norm(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        made[0].read = output

    handles = (
        parts[anatomy.f].register_forward_hook(of_this_thread(on_f)),
        parts[anatomy.h].register_forward_hook(of_this_thread(on_h)),
        block.register_forward_hook(of_this_thread(on_block)),
    )
    return handles if norm is None else (*handles, norm.register_forward_hook(of_this_thread(on_norm)))
