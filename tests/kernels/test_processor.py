"""What is concluded from what PyTorch says of a processor."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import focalnet
from focalnet.cli.main import main
from focalnet.kernels import processor

XEON = {"cpu_name": "Intel Xeon", "avx512_bf16": False, "amx_bf16": False}


@pytest.mark.parametrize(
    ("capabilities", "is_intel", "computes_bfloat16"),
    [
        (XEON, True, False),
        (XEON | {"amx_bf16": True}, True, True),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True, "amx_bf16": False}, False, True),
        ({"cpu_name": "AMD Ryzen 9", "avx512_bf16": False, "amx_bf16": False}, False, False),
        ({"architecture": "aarch64", "bf16": True}, False, True),
        ({"architecture": "aarch64", "bf16": False}, False, False),
        ({}, False, True),  # nothing is known: nothing is said
    ],
)
def test_processors(
    capabilities: dict[str, Any], is_intel: bool, computes_bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert processor.is_intel() == is_intel
    assert processor.computes_bfloat16() == computes_bfloat16


@pytest.mark.parametrize(("capability", "has"), [("DEFAULT", False), ("AVX2", False), ("AVX512", True)])
def test_avx512(capability: str, has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert processor.has_avx512() == has


def test_a_pytorch_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not processor.is_intel()
    assert processor.computes_bfloat16()


@pytest.mark.parametrize("emulated", [False, True])
def test_emulated_bfloat16_is_said_aloud(
    emulated: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processor, "computes_bfloat16", lambda: not emulated)
    model = focalnet.create_model("focalnet_nano")
    assert ("emulates" in str(focalnet.optimize(model, dtype=torch.bfloat16))) == emulated
    assert main(["doctor"]) == 0
    assert ("bfloat16 emulated" in capsys.readouterr().out) == emulated
