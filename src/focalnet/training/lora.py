"""Low-rank adapters (LoRA, arXiv 2106.09685) for finetuning: peft's, in the linear layers of the backbone's blocks.

Only the adapters and what is above the backbone learn. What a run keeps has them merged: its ``model.safetensors`` is
that of an ordinary network.
"""

from __future__ import annotations

from typing import Any

from focalnet.errors import ConfigError, require
from focalnet.models.base import Model

#: Projections of the modulation and of the MLP of each block; convolutions keep their weights.
LAYERS = r"(backbone\.)?layers\.\d+\.blocks\..*\.(f|proj|fc1|fc2)"


def add_adapters(network: Model[Any, Any], rank: int) -> None:
    """Adds adapters in place and freezes the backbone but for them. Their product is added as it is (alpha = rank).

    Raises:
        MissingDependency: peft is not installed.
        ConfigError: the rank is not positive.
    """
    if rank < 1:
        raise ConfigError(f"model.lora_rank={rank} must be at least 1, or null for no adapters")
    peft = require("peft", "lora")
    config = peft.LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=LAYERS)
    peft.inject_adapter_in_model(config, network)
    inside = any(name.startswith("backbone.") for name, _ in network.named_parameters())  # a classifier is its backbone
    for name, parameter in network.named_parameters():
        above = not name.startswith("backbone.") if inside else name.startswith("head.")
        parameter.requires_grad_(above or ".lora_" in name)
