"""Low-rank adapters (peft's) in state dicts: their product is added to the weights of their layers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

ADAPTER = re.compile(r"(.*)\.lora_A\.default\.weight")


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict whose adapters are added to the weights (products in float64); without any, it stays as it is.

    Args:
        state: of a network with adapters whose ``lora_alpha`` is their rank, as ``training.lora`` adds them.
    """
    found = {match[1]: name for name in state if (match := ADAPTER.fullmatch(name))}
    if not found:
        return dict(state)
    plain = {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}
    for layer, name in found.items():
        down, up = state[name], state[name.replace(".lora_A.", ".lora_B.")]
        weight = plain[f"{layer}.weight"]
        plain[f"{layer}.weight"] = (weight.double() + up.double() @ down.double()).to(weight.dtype)
    return plain
