"""``focalnet.optimize``: the same outputs, said aloud, taken back to the bit."""

from __future__ import annotations

import copy

import pytest
import torch

import focalnet
from focalnet.errors import ConfigError, FrozenError
from focalnet.kernels import cpu
from focalnet.kernels.frozen import Frozen
from focalnet.kernels.fused import FusedFocalModulation, FusedMlp
from focalnet.kernels.matmul import DTYPES


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return focalnet.create_model("focalnet_nano")


IMAGES = torch.linspace(-2, 2, 2 * 3 * 32 * 32).view(2, 3, 32, 32)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_inference_gives_the_outputs_of_its_dtype(model: torch.nn.Module, dtype: torch.dtype | None) -> None:
    twin = copy.deepcopy(model).eval().to(dtype or torch.float32)
    done = focalnet.optimize(model, dtype=dtype)
    with torch.inference_mode():
        images = IMAGES.to(dtype or torch.float32)
        close = {"rtol": 1e-4, "atol": 1e-5} if images.dtype == torch.float32 else {"rtol": 5e-2, "atol": 5e-2}
        torch.testing.assert_close(model(images), twin(images), **close)
    assert not model.training
    assert ("bfloat16" in str(done)) == (dtype == torch.bfloat16)
    if (dtype or torch.float32) in DTYPES and cpu.built():
        frozen = [module for module in model.modules() if isinstance(module, Frozen)]
        assert len(frozen) == sum(model.shape.depths) + len(model.shape.depths)
        assert "frozen" in str(done)


def test_undo_gives_the_same_bits_back(model: torch.nn.Module) -> None:
    model.head.eval()  # one part was in evaluation mode already
    model.layers[0].blocks[0].mlp.fc1.weight.requires_grad_(False)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    parameters, modules = list(model.parameters()), list(model.modules())
    modes, flags = [m.training for m in modules], [p.requires_grad for p in parameters]
    done = focalnet.optimize(model, dtype=torch.bfloat16)
    assert list(model.state_dict()) == list(before)
    done.undo()
    done.undo()  # once more changes nothing
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert [m.training for m in modules] == modes
    assert [p.requires_grad for p in parameters] == flags
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert {type(p) for p in parameters} == {torch.nn.Parameter}
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name])
        assert t.dtype == before[name].dtype


def test_what_was_changed_since_survives_undo(model: torch.nn.Module) -> None:
    done = focalnet.optimize(model, dtype=torch.bfloat16)
    model.head.load_state_dict({name: torch.full_like(t, 0.5) for name, t in model.head.state_dict().items()})
    model.norm.weight.data.fill_(3.0)
    done.undo()
    assert model.head.weight.dtype == model.norm.weight.dtype == torch.float32
    assert model.head.weight.eq(0.5).all()
    assert model.norm.weight.eq(3.0).all()


def test_new_weights_after_optimize_need_undo(model: torch.nn.Module) -> None:
    if not (DTYPES and cpu.built()):
        pytest.skip("nothing is frozen here")
    done = focalnet.optimize(model)
    other = focalnet.create_model("focalnet_nano").eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(FrozenError, match=r"cannot load weights.*undo\(\)"):
        model.load_state_dict(other.state_dict())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    with pytest.raises(FrozenError, match="cannot optimize it again"):
        focalnet.optimize(model, dtype=torch.bfloat16)
    done.undo()
    model.load_state_dict(other.state_dict())
    focalnet.optimize(model)
    with torch.inference_mode():
        torch.testing.assert_close(model(IMAGES), other(IMAGES), rtol=1e-4, atol=1e-5)


def test_training_compiles_to_one_graph(model: torch.nn.Module) -> None:
    focalnet.optimize(model, for_="training", save_memory=True)
    torch._dynamo.reset()
    gradients = []
    for network in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        network(IMAGES).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_training_keeps_gradients(model: torch.nn.Module) -> None:
    twin = copy.deepcopy(model)
    done = focalnet.optimize(model, for_="training", save_memory=True)
    for network in (model, twin):
        network(IMAGES).square().sum().backward()
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4)
    parts = [m for m in model.modules() if isinstance(m, FusedFocalModulation | FusedMlp)]
    assert len(parts) == 2 * sum(model.shape.depths)
    assert all(part.recompute for part in parts)
    assert "GELU" in str(done)
    done.undo()
    assert not any(part.recompute for part in parts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"for_": "speed"}, '"speed" must be'),
        ({"for_": "training", "dtype": torch.bfloat16}, "autocast"),
        ({"save_memory": True}, "save_memory is for training"),
    ],
)
def test_options_that_do_not_go_together(model: torch.nn.Module, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        focalnet.optimize(model, **options)
