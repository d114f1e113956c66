"""Hugging Face accelerate keeps weights elsewhere until a layer is called; a model must then call each layer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import focalnet
from focalnet.errors import InputError

accelerate = pytest.importorskip("accelerate")

SMALL: dict[str, Any] = {"embed_dim": 8, "depths": (1, 1)}
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "options",
    [{}, {"layer_scale": 0.1, "post_norm": True}, {"overlapped": True, "normalize_modulator": True}],
    ids=["published", "post-norm", "overlapped"],
)
@torch.no_grad()
def test_offloaded_models_give_the_same(options: dict[str, Any], tmp_path: Path) -> None:
    model = focalnet.create_model("focalnet_tiny_srf", num_classes=3, **SMALL, **options).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = model(images)
    in_memory = accelerate.cpu_offload(copy.deepcopy(model), execution_device=CPU)
    on_disk = accelerate.disk_offload(copy.deepcopy(model), tmp_path, execution_device=CPU)
    for offloaded in (in_memory, on_disk):
        assert all(p.is_meta for p in offloaded.parameters())
        torch.testing.assert_close(offloaded(images), expected, rtol=1e-5, atol=1e-6)
    accelerate.hooks.remove_hook_from_module(in_memory, recurse=True)
    torch.testing.assert_close(in_memory(images), expected, rtol=1e-5, atol=1e-6)


def test_weights_that_nothing_loads_are_refused() -> None:
    with accelerate.init_empty_weights():
        model = focalnet.create_model("focalnet_tiny_srf", **SMALL)
    with pytest.raises(InputError, match="on the meta device"):
        model(torch.randn(1, 3, 32, 32))
