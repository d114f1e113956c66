"""int8: the kernels agree with the float reference of the same arithmetic, and what cannot be right is refused."""

from __future__ import annotations

import copy
import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.exporting.networks import FAMILIES, network
from torch.utils.flop_counter import FlopCounterMode

import focalnet
from focalnet import Int8
from focalnet.errors import ConfigError, FrozenError, InputError
from focalnet.kernels import cpu, int8, processor, quantization
from focalnet.kernels.cpu.arguments import Steps
from focalnet.kernels.frozen import Frozen

pytestmark = pytest.mark.skipif(int8.why_not() is not None, reason=str(int8.why_not()))

DTYPES = [torch.float32, torch.bfloat16]
IMAGES = torch.linspace(-2, 2, 2 * 3 * 32 * 32).view(2, 3, 32, 32).sin()


def levels_of(x: torch.Tensor, steps: Steps) -> torch.Tensor:
    """The levels of float numbers by PyTorch's operations, as int64."""
    rounded = (x.float() * torch.tensor(steps.levels)).round().nan_to_num(0)
    return (rounded + steps.zero_point).clamp(0, 255).long()


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return focalnet.create_model("focalnet_nano", num_classes=7).eval()


def options(**changes: object) -> Int8:
    return Int8(**({"images": IMAGES, "sensitivity_images": 1, "max_layer_error": 9.0, "max_error": 9.0} | changes))


# ---- levels ----


@pytest.mark.parametrize("variant", list(cpu.load().variants) if cpu.built() else [])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("zero_point", [0, 1, 128, 255])
def test_levels_are_rounded_and_clipped(variant: str, dtype: torch.dtype, zero_point: int) -> None:
    library = cpu.Library(Path(cpu.load()._library._name), variant)
    steps = Steps(0.0625, zero_point)  # halves are exact: ties to even
    numbers = [0.0, -0.0, 0.03125, 0.09375, -0.03125, 1e9, -1e9, 3e38, -3e38, float("inf"), float("-inf"), float("nan")]
    x = torch.cat([torch.tensor(numbers), torch.linspace(-20, 20, 511)]).to(dtype).repeat(3, 1)
    assert torch.equal(library.quantize(x, steps).long(), levels_of(x, steps))
    ones = torch.ones_like(x)
    assert torch.equal(library.quantize_product(x, ones, steps).long(), levels_of(x, steps))
    finite = x[:, 12:].contiguous()
    for found, exact in (
        (library.quantize_gelu(finite, steps), F.gelu(finite.float())),
        (
            library.quantize_norm(finite, *torch.ones(2, 511), 1e-5, steps),
            F.layer_norm(finite.float(), (511,), torch.ones(511), torch.ones(511), 1e-5),
        ),
    ):
        assert (found.long() - levels_of(exact, steps)).abs().max() <= 1
        assert (found.long() != levels_of(exact, steps)).float().mean() < 0.01


def test_slices_and_strides_of_a_product() -> None:
    steps = Steps(0.02, 100)
    wide = torch.randn(2, 3, 5, 53)
    factor = torch.randn(2, 3, 5, 21)
    for x in (wide[..., :21], wide[..., 30:51], wide[..., :42:2], wide.transpose(1, 2)[..., :21].transpose(1, 2)):
        assert torch.equal(cpu.load().quantize_product(x, factor, steps).long(), levels_of(x * factor, steps))
    flipped = wide.transpose(1, 2)[..., :21]
    expected = levels_of(flipped * factor.transpose(1, 2), steps)
    assert torch.equal(cpu.load().quantize_product(flipped, factor.transpose(1, 2), steps).long(), expected)


# ---- products ----


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 3), st.integers(1, 70), st.integers(1, 40), st.integers(1, 130), st.integers(0, 255), st.booleans(),
    st.sampled_from([None, "add", "sum"]),
)  # fmt: skip
def test_products_are_those_of_the_reference(
    batch: int, rows: int, outputs: int, inputs: int, zero_point: int, bf16: bool, residual: str | None
) -> None:
    generator = torch.Generator().manual_seed(rows * 1000 + inputs)
    weight, bias = torch.randn(outputs, inputs, generator=generator), torch.randn(outputs, generator=generator)
    x = 4 * torch.randn(batch, rows, inputs, generator=generator)
    steps, dtype = Steps(0.03, zero_point), torch.bfloat16 if bf16 else torch.float32
    expected = int8.reference(x, weight, bias, steps)
    other = None if residual is None else torch.randn(batch, rows, outputs, generator=generator).to(dtype)
    if other is not None:
        expected = expected + other.float()
    layer = int8.Int8Weight(weight, bias, steps)
    found = layer.product(cpu.load().quantize(x, steps), dtype, residual=other, inplace=residual == "sum")
    assert found.dtype == dtype
    assert found.shape == expected.shape
    tolerance = 2e-2 if bf16 else 1e-4
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def test_extreme_products_do_not_saturate() -> None:
    assert not int8._wrong_extremes()
    for inputs in (2, 64, 3072):
        weight = torch.full((33, inputs), 127.0)
        weight[::2] = -127
        layer = int8.Int8Weight(weight, torch.zeros(33), Steps(1.0, 0))
        found = layer.product(torch.full((5, inputs), 255, dtype=torch.uint8), torch.float32)
        assert torch.equal(found, torch.full((5, inputs), 255.0) @ weight.t())


def test_weights_have_a_step_for_each_row() -> None:
    weight = torch.tensor([[1e-3, -2e-3], [0.0, 0.0], [1000.0, 3.0]])
    values, scales = int8.quantized_weight(weight)
    assert values.tolist() == [[64, -127], [0, 0], [127, 0]]
    torch.testing.assert_close(scales, torch.tensor([2e-3 / 127, 1.0, 1000 / 127]))
    assert not int8.fits(torch.tensor([[float("nan")]]))
    assert not int8.fits(torch.empty(1, 70000).zero_())


# ---- models ----


def simulated(model: torch.nn.Module, result: quantization.Quantization, images: torch.Tensor) -> torch.Tensor:
    layers = quantization._linear_layers(model)
    chosen = {layer.name: layers[layer.name] for layer in result.layers if layer.int8}
    with torch.no_grad(), quantization._replaced(chosen, result._steps):
        return model(images)


VARIANTS = [{}, {"layer_scale": 0.5}, {"post_norm": True, "post_norm_in_modulation": True}]


@pytest.mark.parametrize("changes", VARIANTS)
def test_blocks_agree_with_the_reference(changes: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = focalnet.create_model("focalnet_nano", num_classes=7, **changes).eval()
    twin = copy.deepcopy(model)
    result = focalnet.optimize(model, int8=options()).quantization
    assert result is not None
    x = torch.randn(3, 5, 9, 64)
    layers = quantization._linear_layers(twin)
    with torch.no_grad():
        found, plain = model.layers[0].blocks[0](x), twin.layers[0].blocks[0](x)
        with quantization._replaced(layers, result._steps):
            expected = twin.layers[0].blocks[0](x)
    # A number close to the middle between two levels may be rounded to either, which changes its whole row a little.
    same = (found - expected).abs() < 1e-4 * expected.abs().max()
    assert same.float().mean() > 0.9
    assert (found - expected).norm() < 0.2 * (expected - plain).norm()


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_models_agree_with_the_reference(changes: dict[str, object], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = focalnet.create_model("focalnet_nano", num_classes=7, **changes).eval()
    twin = copy.deepcopy(model)
    done = focalnet.optimize(model, dtype=dtype, int8=options())
    assert done.quantization is not None
    assert all(layer.int8 for layer in done.quantization.layers)
    assert len(done.quantization.layers) == 5 * sum(model.shape.depths)
    wide = torch.randn(3, 3, 37, 51)
    with torch.inference_mode():
        for images in (IMAGES, IMAGES[:1], wide, wide.contiguous(memory_format=torch.channels_last), wide.flip(3)):
            plain, expected = twin(images), simulated(twin, done.quantization, images)
            found = model(images.to(dtype)).float()
            rounding = (1e-3 if dtype == torch.float32 else 0.03) * float(plain.norm())
            assert float((found - expected).norm()) < rounding + 0.5 * float((expected - plain).norm())
        assert model(IMAGES[:0].to(dtype)).shape == (0, 7)
        assert not torch.equal(model(IMAGES.to(dtype)).float(), plain[:2])
        broken = IMAGES.to(dtype).clone()
        broken[0, 0, 0, 0] = float("nan")
        assert model(broken)[0].isnan().all()  # levels have no NaN: the residual sums keep it


def test_undo_copies_and_pickles(model: torch.nn.Module) -> None:
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with torch.no_grad():
        plain = model(IMAGES)
    done = focalnet.optimize(model, int8=options())
    with torch.no_grad():
        found = model(IMAGES)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(IMAGES), found)
    assert {name: t.dtype for name, t in model.state_dict().items()} == {name: t.dtype for name, t in before.items()}
    done.undo()
    assert not any("int8_steps" in module.__dict__ for module in model.modules())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(IMAGES), plain)


def test_a_copy_that_cannot_compute_in_int8_warns(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        plain = model(IMAGES)
    focalnet.optimize(model, int8=options())
    saved = pickle.dumps(model)
    monkeypatch.setattr(int8, "why_not", lambda: "no VNNI")
    with pytest.warns(RuntimeWarning, match="no VNNI"):
        other = pickle.loads(saved)
    with torch.no_grad():
        torch.testing.assert_close(other(IMAGES), plain, rtol=1e-4, atol=1e-5)


def test_frozen_blocks_refuse_changes(model: torch.nn.Module) -> None:
    focalnet.optimize(model, int8=options())
    for change in (
        model.train,
        model.bfloat16,
        lambda: model.load_state_dict(model.state_dict()),
        lambda: model(IMAGES.clone().requires_grad_()),
        lambda: focalnet.optimize(model, int8=options()),
    ):
        with pytest.raises(FrozenError):
            change()
    with torch.no_grad(), pytest.raises(InputError, match="optimized for float32"):
        model(IMAGES.bfloat16())


def test_compiled_models_give_the_same(model: torch.nn.Module) -> None:
    focalnet.optimize(model, int8=options())
    torch._dynamo.reset()
    with torch.inference_mode():
        compiled = torch.compile(model, fullgraph=True, backend="eager")(IMAGES)
        torch.testing.assert_close(compiled, model(IMAGES))


def test_operations_are_counted(model: torch.nn.Module) -> None:
    counts = []
    for _ in range(2):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(IMAGES)
        counts.append(counter.get_total_flops())
        if len(counts) == 1:
            focalnet.optimize(model, int8=options())
    assert 0.9 < counts[1] / counts[0] <= 1.0  # the fused focal context is not counted


# ---- calibration ----


def test_costly_layers_stay_in_higher_precision(model: torch.nn.Module) -> None:
    every = focalnet.optimize(copy.deepcopy(model), int8=options()).quantization
    assert every is not None
    costs = sorted(layer.error for layer in every.layers)
    done = focalnet.optimize(model, int8=options(max_layer_error=costs[-3])).quantization
    assert done is not None
    assert {layer.error for layer in done.kept} == set(costs[-2:])
    assert all(layer.name in str(done) for layer in done.kept)
    assert "38 of 40 linear layers" in str(done)


def test_the_total_error_is_limited(model: torch.nn.Module) -> None:
    every = focalnet.optimize(copy.deepcopy(model), int8=options()).quantization
    assert every is not None
    half = focalnet.optimize(model, int8=options(max_error=every.error / 2)).quantization
    assert half is not None
    assert half.kept
    assert half.error <= every.error / 2
    assert min(layer.error for layer in half.kept) >= max(layer.error for layer in half.layers if layer.int8)


def test_ranges_have_less_error_than_the_extremes() -> None:
    record = quantization._Input()
    record.add(torch.randn(40000, generator=torch.Generator().manual_seed(1)) ** 5)
    numbers = torch.cat(record.numbers)
    extremes = quantization._mean_squared_error(numbers, record.low, record.high)
    low, high = ((level - record.steps().zero_point) * record.steps().scale for level in (0, 255))
    assert record.low < low < 0.0 < high < 0.9 * record.high
    assert quantization._mean_squared_error(numbers, low, high) < 0.7 * extremes
    assert quantization._steps(0.0, 0.0) == Steps(1.0, 0)
    assert quantization._steps(-1.0, 0.0).zero_point == 255


def test_accuracy_is_measured_and_limited(model: torch.nn.Module) -> None:
    with torch.no_grad():
        labels = model(IMAGES).argmax(1)
    done = focalnet.optimize(model, int8=options(evaluation=[(IMAGES, labels)], max_drop=1.0))
    assert done.quantization is not None
    assert done.quantization.accuracy is not None
    assert done.quantization.accuracy[0] == 1.0
    assert "top-1 accuracy 100.00% before" in str(done)
    done.undo()
    losing = copy.deepcopy(model)
    before = {name: t.clone() for name, t in losing.state_dict().items()}
    values = itertools.chain([0.9], itertools.repeat(0.8))
    with pytest.raises(ConfigError, match=r"loses 10.00% of AP \(90.00% to 80.00%\) with 0 of 40 layers in higher"):
        focalnet.optimize(losing, dtype=torch.bfloat16, int8=options(evaluation=lambda _: {"AP": next(values)}))
    assert not any(isinstance(module, Frozen) or "int8_steps" in module.__dict__ for module in losing.modules())
    assert all(torch.equal(t, before[name]) for name, t in losing.state_dict().items())


@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_stay_in_higher_precision_until_the_metric_stays(model: torch.nn.Module, dtype: torch.dtype) -> None:
    values = iter([{"AP": 0.9, "recall": 0.5}, {"AP": 0.85, "recall": 0.6}, {"AP": 0.88, "recall": 0.6},
                   {"AP": 0.898, "recall": 0.5}])  # fmt: skip
    with torch.no_grad():
        plain = model(IMAGES)
    done = focalnet.optimize(model, dtype=dtype, int8=options(evaluation=lambda _: next(values)))
    result = done.quantization
    assert result is not None
    assert len(result.kept) == 3  # one, then two more
    assert min(layer.error for layer in result.kept) >= max(layer.error for layer in result.layers if layer.int8)
    assert result.metrics == {"AP": (0.9, 0.898), "recall": (0.5, 0.5)}
    assert "AP 90.00% before, 89.80% in int8" in str(done)
    assert str(done).count("are frozen") == 1
    done.undo()
    with torch.no_grad():
        assert torch.equal(model(IMAGES), plain)


@pytest.mark.parametrize(("returned", "says"), [({}, "no metric"), ({"AP": float("nan")}, "must be finite")])
def test_evaluations_that_say_nothing(returned: dict[str, float], says: str, model: torch.nn.Module) -> None:
    with pytest.raises(InputError, match=says):
        focalnet.optimize(model, int8=options(evaluation=lambda _: returned))


# ---- detectors and segmenters ----


@pytest.mark.parametrize(("method", "changes"), FAMILIES)
def test_networks_of_every_family(method: str, changes: dict[str, object]) -> None:
    net = network(method, **changes)
    twin = copy.deepcopy(net)
    images = torch.linspace(-2, 2, 2 * 3 * 64 * 96).view(2, 3, 64, 96).mul(99).sin()
    done = focalnet.optimize(net, int8=Int8(images, max_layer_error=9.0, max_error=9.0))
    result = done.quantization
    assert result is not None
    assert len(result.layers) == 5 * sum(twin.backbone.shape.depths)
    assert not result.kept
    assert (result.compared == "the feature maps") == (method != "classifier")
    layers = quantization._linear_layers(twin)
    with torch.no_grad():
        plain = quantization._outputs(twin, images)
        with quantization._replaced(layers, result._steps):
            expected = quantization._outputs(twin, images)
        found = quantization._outputs(net, images)
        for ours, theirs, exact in zip(found, expected, plain, strict=True):
            assert (ours - theirs).norm() < 1e-3 * exact.norm() + 0.5 * (theirs - exact).norm()
            assert not torch.equal(ours, exact)
        sizes, originals = [(64, 96), (60, 70)], [(128, 192), (30, 35)]
        results = net.predict(images, sizes, originals)
        assert len(results) == 2
        done.undo()
        for one, other in zip(
            net.predict(images, sizes, originals), twin.predict(images, sizes, originals), strict=True
        ):
            assert one.to_dict() == other.to_dict()


def test_kernels_that_compute_something_else_are_noticed(model: torch.nn.Module, monkeypatch: Any) -> None:
    original = int8.Int8Weight.product
    monkeypatch.setattr(int8.Int8Weight, "product", lambda *given, **how: -original(*given, **how))
    with pytest.raises(ConfigError, match=r"in int8 an image changes the output by .* leave int8 out"):
        focalnet.optimize(model, int8=options())
    assert not any(isinstance(module, Frozen) for module in model.modules())


def test_outputs_that_cannot_be_compared(model: torch.nn.Module) -> None:
    class Objects(torch.nn.Module):
        """A model with as many outputs as there are positive logits."""

        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = self.net(x)
            return logits[logits > logits.median()][: int(logits.sum().abs() * 1e6) % 7]

    with pytest.raises(ConfigError, match="depend on their values"):
        focalnet.optimize(Objects(), int8=options(images=[IMAGES, IMAGES[:1], IMAGES[1:]], sensitivity_images=9))


def test_samples_of_many_batches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "_SAMPLE", 64)
    monkeypatch.setattr(quantization, "_MOST_NUMBERS", 256)
    record = quantization._Input()
    for i in range(40):
        record.add(torch.full((100,), float(i)))
    numbers = torch.cat(record.numbers)
    assert len(numbers) <= 256
    assert (record.low, record.high) == (0.0, 39.0)
    assert set(numbers.tolist()) == set(map(float, range(40)))  # no batch counts more than another
    assert len({len(one) for one in record.numbers}) == 1


def test_backbones(model: torch.nn.Module) -> None:
    backbone = focalnet.create_model("focalnet_nano", num_classes=0).eval()
    done = focalnet.optimize(backbone, int8=options())
    assert done.quantization is not None
    assert done.quantization.agreement is None or backbone(IMAGES).ndim == 2


# ---- refusals ----


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "got none"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "uint8 tensor"),
        (torch.zeros(0, 3, 8, 8), "float batches"),
        (["a.png"], "a str"),
        (torch.full((1, 3, 8, 8), float("nan")), "not finite"),
    ],
)
def test_unsuitable_images(images: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Int8(images)  # type: ignore[arg-type]


def test_refusals(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="max_error"):
        options(max_error=float("nan"))
    with pytest.raises(ConfigError, match="int8 is for inference"):
        focalnet.optimize(model, for_="training", int8=IMAGES)
    with pytest.raises(ConfigError, match="not float16"):
        focalnet.optimize(model, dtype=torch.float16, int8=IMAGES)
    with pytest.raises(ConfigError, match="model is on meta"):
        focalnet.optimize(copy.deepcopy(model).to("meta"), int8=IMAGES)
    with pytest.raises(ConfigError, match="found none"):
        focalnet.optimize(torch.nn.Conv2d(3, 3, 1), int8=IMAGES)
    int8._reason.cache_clear()
    monkeypatch.setattr(processor, "multiplies_int8", lambda: False)
    try:
        with pytest.raises(ConfigError, match="VNNI"):
            focalnet.optimize(model, int8=IMAGES)
        monkeypatch.undo()
        int8._reason.cache_clear()
        monkeypatch.setattr(int8, "_wrong_extremes", lambda: True)
        with pytest.raises(ConfigError, match="saturate"):
            focalnet.optimize(model, int8=IMAGES)
    finally:
        int8._reason.cache_clear()
    assert not any(isinstance(module, Frozen) for module in model.modules())


def test_a_shared_weight_is_refused_and_nothing_changes(model: torch.nn.Module) -> None:
    shared = model.layers[0].blocks[0].mlp.fc1.weight.detach()
    with pytest.raises(ConfigError, match="shares its memory"):
        focalnet.optimize(model, int8=options())
    assert shared.dtype == model.norm.weight.dtype == torch.float32
    assert not any(isinstance(module, Frozen) or "int8_steps" in module.__dict__ for module in model.modules())
