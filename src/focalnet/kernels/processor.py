"""Properties of this processor, as PyTorch reports them (releases before ``torch.cpu.get_capabilities`` do not)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

_INT8 = ("avx512_vnni", "avx_vnni", "amx_int8")  # of x86


def capabilities() -> Mapping[str, Any]:
    """PyTorch's report of instruction sets and more, by name; empty if it has none."""
    get_capabilities = getattr(torch.cpu, "get_capabilities", dict)
    report: Mapping[str, Any] = get_capabilities()
    return report


def is_intel() -> bool:
    """Whether this is an Intel processor; MKL, PyTorch's library for float32 on x86, is fastest only there."""
    return str(capabilities().get("cpu_name", "")).startswith("Intel")


def has_avx512() -> bool:
    """Whether PyTorch uses AVX-512 on this processor."""
    return "AVX512" in torch.backends.cpu.get_cpu_capability()


def computes_bfloat16() -> bool:
    """Whether it has bfloat16 instructions; otherwise bfloat16 runs at a third of the speed of float32 or less.

    True if PyTorch does not report it.
    """
    report = capabilities()
    return not report or any(report.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def computes_int8() -> bool:
    """Whether it has instructions that sum products of 8-bit integers; without, int8 is no faster than float32.

    True if PyTorch does not report it.
    """
    report = capabilities()
    return not any(name in report for name in _INT8) or multiplies_int8()


def multiplies_int8() -> bool:
    """Whether it multiplies int8 numbers without intermediate sums of 16 bits, which could saturate (VNNI)."""
    return any(capabilities().get(name, False) for name in _INT8)
