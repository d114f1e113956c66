"""What this processor is good at, as far as PyTorch tells (releases before ``torch.cpu.get_capabilities`` do not)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def capabilities() -> Mapping[str, Any]:
    """PyTorch's list of instruction sets and more, by name; empty where it has none."""
    listed = getattr(torch.cpu, "get_capabilities", dict)
    found: Mapping[str, Any] = listed()
    return found


def is_intel() -> bool:
    """Whether Intel made it: MKL, to which PyTorch on x86 sends float32 products, runs its best code there only."""
    return str(capabilities().get("cpu_name", "")).startswith("Intel")


def has_avx512() -> bool:
    """Whether it has vectors of 512 bits that PyTorch uses."""
    return "AVX512" in torch.backends.cpu.get_cpu_capability()


def computes_bfloat16() -> bool:
    """Whether it multiplies bfloat16 itself; others emulate that at a third of the speed of float32, and less.

    True where PyTorch does not tell.
    """
    known = capabilities()
    return not known or any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
