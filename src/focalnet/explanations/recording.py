"""Records the gates and modulators of a FocalNet's forward pass, and reads its kernels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from focalnet.errors import ConfigError, did_you_mean
from focalnet.models.backbone import FocalNetBase
from focalnet.nn import FocalModulation, FocalNetBlock

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

    gates: torch.Tensor
    modulator: torch.Tensor


def block_names(model: FocalNetBase) -> list[str]:
    """Names of all blocks, first to last, as in ``model.named_modules()``: ``"layers.0.blocks.0"``, ..."""
    return [name for name, module in model.named_modules() if isinstance(module, FocalNetBlock)]


@contextmanager
def record(model: FocalNetBase, blocks: Sequence[str] | None = None) -> Iterator[dict[str, BlockRecord]]:
    """Records gates and modulators of chosen blocks while the body of the ``with`` statement runs the model.

        with torch.inference_mode(), record(model, ["layers.3.blocks.1"]) as records:
            logits = model(images)
        records["layers.3.blocks.1"].gates

    It uses forward hooks and removes them afterwards; nothing is stored on modules.

    Args:
        model: a classifier or backbone.
        blocks: names of blocks; default: the last one of each stage.

    Raises:
        ConfigError: no such block.
    """
    names = _chosen(model, blocks)
    records: dict[str, BlockRecord] = {}
    with ExitStack() as hooks:
        for name in names:
            for handle in _hook(_modulation(model, name), name, records):
                hooks.callback(handle.remove)
        yield records


def kernels(model: FocalNetBase, blocks: Sequence[str] | None = None) -> dict[str, list[NDArray[np.float32]]]:
    """Depthwise kernels ``(k, k)`` of each focal level, averaged over channels, by block, as in the paper's figure.

    Args:
        model: a classifier or backbone.
        blocks: names of blocks; default: the last one of each stage.

    Raises:
        ConfigError: no such block.
    """
    names = _chosen(model, blocks)
    return {name: [_mean_kernel(layer) for layer in _modulation(model, name).focal_layers] for name in names}


def _chosen(model: FocalNetBase, blocks: Sequence[str] | None) -> list[str]:
    """The names in network order, each once; default: the last block of each stage."""
    known = block_names(model)
    if blocks is None:
        return list({name.split(".")[1]: name for name in known}.values())  # a later block replaces an earlier one
    for name in blocks:
        if name not in known:
            raise ConfigError(f'no block "{name}"{did_you_mean(name, known)}; the blocks are {", ".join(known)}')
    return [name for name in known if name in blocks]


def _modulation(model: FocalNetBase, name: str) -> FocalModulation:
    block = model.get_submodule(name)
    assert isinstance(block, FocalNetBlock)
    return block.modulation


def _mean_kernel(level: nn.Module) -> NDArray[np.float32]:
    weight = level.get_parameter("0.weight").detach().float()
    return weight.mean((0, 1)).cpu().numpy()


def _hook(
    modulation: FocalModulation, name: str, records: dict[str, BlockRecord]
) -> tuple[RemovableHandle, RemovableHandle]:
    """The output of ``f`` ends in the gates, that of ``h`` is the modulator; ``f`` runs before ``h``."""
    gates: list[torch.Tensor] = []

    def on_f(_module: nn.Module, _inputs: Any, output_BHWC: torch.Tensor) -> None:
        gates.append(output_BHWC[..., -modulation.levels - 1 :].detach().permute(0, 3, 1, 2))

    def on_h(_module: nn.Module, _inputs: Any, output_BCHW: torch.Tensor) -> None:
        records[name] = BlockRecord(gates.pop(), output_BCHW.detach())

    return modulation.f.register_forward_hook(on_f), modulation.h.register_forward_hook(on_h)
