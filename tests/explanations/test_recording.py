"""Recording: the right values, of the chosen blocks, and no trace left."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from focalnet.errors import ConfigError
from focalnet.explanations import block_names, kernels, record
from focalnet.models.backbone import FocalNetBase
from tests.inference.small import backbone, classifier


def images(batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, 16, 24, generator=torch.Generator().manual_seed(0))


def traces(model: torch.nn.Module) -> list[str]:
    """Names of everything a module holds beyond its parameters, and of its hooks."""
    return [f"{n}.{key}" for n, m in model.named_modules() for key in m.__dict__] + [
        f"{n}:{len(m._forward_hooks)}" for n, m in model.named_modules()
    ]


@pytest.mark.parametrize("model", [classifier(), backbone()], ids=["classifier", "backbone"])
def test_default_is_the_last_block_of_each_stage(model: FocalNetBase) -> None:
    with torch.no_grad(), record(model) as records:
        model(images(batch=2))
    assert {name: (tuple(r.gates.shape), tuple(r.modulator.shape)) for name, r in records.items()} == {
        "layers.0.blocks.0": ((2, 3, 8, 12), (2, 8, 8, 12)),
        "layers.1.blocks.1": ((2, 2, 4, 6), (2, 16, 4, 6)),
    }


def test_values_follow_the_equations() -> None:
    model = classifier()
    modulation = model.layers[0].blocks[0].modulation
    seen: list[torch.Tensor] = []
    handle = modulation.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.no_grad(), record(model) as records:
        model(images())
        handle.remove()
        context, gates = modulation.f(seen[0])[..., 8:].split((8, 3), dim=-1)
        z, total = context.permute(0, 3, 1, 2), torch.zeros(())
        for level in range(2):
            z = F.gelu(modulation.focal_layers[level][0](z))
            total = total + z * gates[..., level][:, None]
        total = total + F.gelu(z.mean((2, 3), keepdim=True)) * gates[..., 2][:, None]
        modulator = F.conv2d(total, modulation.h.weight, modulation.h.bias)
    found = records["layers.0.blocks.0"]
    torch.testing.assert_close(found.gates, gates.permute(0, 3, 1, 2))
    torch.testing.assert_close(found.modulator, modulator)


def test_several_images_are_each_as_alone() -> None:
    model, both = classifier(), images(batch=2)
    with torch.inference_mode(), record(model) as records:
        model(both)
    with torch.inference_mode(), record(model) as alone:
        model(both[1:])
    for name, found in alone.items():
        torch.testing.assert_close(records[name].gates[1:], found.gates)
        torch.testing.assert_close(records[name].modulator[1:], found.modulator)


def test_nothing_is_left_on_modules_even_after_an_error() -> None:
    model = classifier()
    before = traces(model)
    with torch.no_grad(), record(model):
        model(images())
    assert traces(model) == before
    with pytest.raises(ZeroDivisionError), record(model):
        raise ZeroDivisionError
    assert traces(model) == before


def test_recording_changes_neither_outputs_nor_gradients() -> None:
    model = classifier()
    plain = model(images())
    with record(model) as records:
        recorded = model(images())
        recorded.sum().backward()
    torch.testing.assert_close(recorded, plain, rtol=1e-6, atol=1e-7)  # on some processors the last bit differs
    assert model.head.weight.grad is not None
    assert not any(found.gates.requires_grad or found.modulator.requires_grad for found in records.values())


def test_chosen_blocks_come_once_and_in_network_order() -> None:
    model = classifier()
    with torch.no_grad(), record(model, ["layers.1.blocks.1", "layers.0.blocks.0", "layers.1.blocks.1"]) as records:
        model(images())
    assert list(records) == ["layers.0.blocks.0", "layers.1.blocks.1"]


def test_an_unknown_block_is_refused_with_the_valid_ones() -> None:
    model = classifier()
    with (
        pytest.raises(ConfigError, match=r'"layers\.9".*layers\.0\.blocks\.0, layers\.1\.blocks\.0'),
        record(model, ["layers.9"]),
    ):
        pass
    assert block_names(model) == ["layers.0.blocks.0", "layers.1.blocks.0", "layers.1.blocks.1"]


def test_kernels_are_means_over_channels() -> None:
    model = classifier()
    found = kernels(model)
    assert {name: [k.shape for k in levels] for name, levels in found.items()} == {
        "layers.0.blocks.0": [(3, 3), (5, 5)],
        "layers.1.blocks.1": [(3, 3)],
    }
    weight = model.state_dict()["layers.0.blocks.0.modulation.focal_layers.1.0.weight"]
    assert found["layers.0.blocks.0"][1][4, 2] == pytest.approx(weight[:, 0, 4, 2].mean().item())


def test_passes_of_other_threads_are_not_recorded() -> None:
    model = classifier()
    with torch.no_grad(), record(model) as records, ThreadPoolExecutor(1) as pool:
        model(images())
        before = records["layers.0.blocks.0"]
        pool.submit(model, images(batch=2)).result()
        assert records["layers.0.blocks.0"] is before
        assert len(before.gates) == 1
