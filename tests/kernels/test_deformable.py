"""Deformable attention by the CPU kernels: against float64, in every instruction set this processor has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.deformable import SHAPES, differentiated, exact, example, worst
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from focalnet.errors import InputError
from focalnet.kernels import backend, cpu, deformable_attention
from focalnet.kernels.cpu import library_file
from focalnet.kernels.fuse import fuse
from focalnet.kernels.fused import FusedDeformableAttention
from focalnet.nn.deformable import DeformableAttention
from focalnet.ops.deformable import by_gathering, by_sampling, multi_scale_deformable_attention

pytestmark = pytest.mark.skipif(not cpu.built(), reason="the CPU kernels were not built")
VARIANTS = list(cpu.load().variants) if cpu.built() else []
sides = st.integers(1, 6)


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs the native backend with the kernels of one instruction set."""
    library = cpu.Library(next(library_file.candidates()), request.param)
    monkeypatch.setattr(cpu, "load", lambda: library)
    with backend.use("native"):
        yield


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("channels", [1, 5, 16, 32, 37, 64, 150])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_errors_are_at_most_twice_those_of_eager(channels: int, dtype: torch.dtype) -> None:
    """The numerical contract: against float64, at most twice the error of eager in the same dtype."""
    inputs = example(channels=channels, dtype=dtype)
    truth = differentiated(by_sampling, inputs, torch.float64)
    eager = worst(differentiated(multi_scale_deformable_attention, inputs), truth)
    ours = worst(differentiated(deformable_attention, inputs), truth)
    for mine, theirs, true in zip(ours, eager, truth, strict=True):
        assert mine <= 2 * theirs + torch.finfo(torch.float32).eps * float(true.abs().max())


@settings(max_examples=60)
@given(
    shapes=st.lists(st.tuples(sides, sides), min_size=1, max_size=4),
    batch=st.integers(1, 3),
    queries=st.integers(1, 40),
    heads=st.integers(1, 3),
    points=st.integers(1, 4),
    channels=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_any_shape(
    shapes: list[tuple[int, int]], batch: int, queries: int, heads: int, points: int, channels: int, seed: int
) -> None:
    inputs = example(shapes, batch, queries, heads, points, channels, seed=seed)
    with backend.use("native"):
        ours = differentiated(deformable_attention, inputs)
    for a, t in zip(ours, differentiated(by_sampling, inputs, torch.float64), strict=True):
        torch.testing.assert_close(a.double(), t, rtol=1e-4, atol=1e-5 * max(1.0, float(t.abs().max())))


@pytest.mark.parametrize("threads", [2, 3, 7, 64])
def test_is_deterministic_for_any_number_of_threads(threads: int) -> None:
    inputs = example(queries=53, heads=3, channels=32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = differentiated(deformable_attention, inputs)
        torch.set_num_threads(threads)
        many = differentiated(deformable_attention, inputs)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(alone, many, strict=True))


def placed(*places: float) -> tuple[Tensor, Tensor]:
    """Locations along the middle of a level of one row, and weights of 1."""
    locations = torch.tensor([[x, 0.5] for x in places])[None, :, None, None, None]
    return locations.requires_grad_(), torch.ones(locations.shape[:-1], requires_grad=True)


@pytest.mark.usefixtures("variant")
def test_edges() -> None:
    """On a map of 2 x 2 ones: on, half out of and out of the map, however far; slopes are taken from the right."""
    places = [0.25, 0.0, -0.25, -0.3, 1.0, 1.25, 1.3, 1e30, -3e38, torch.inf, -torch.inf]
    locations, weights = placed(*places)
    ones = torch.ones(1, 4, 1, 5, requires_grad=True)
    out = deformable_attention(ones, [(2, 2)], locations, weights)
    expected = torch.tensor([1.0, 0.5, 0.0, 0.0, 0.5, *[0.0] * 6])
    torch.testing.assert_close(out[0, :, 0], expected)
    slope, grad_locations, grad_weights = torch.autograd.grad(out.sum(), (ones, locations, weights))
    torch.testing.assert_close(grad_weights.flatten(), 5 * expected)
    assert grad_locations[0, :, 0, 0, 0, 0].tolist() == [0.0, 10.0, 10.0, 0.0, -10.0, *[0.0] * 6]
    torch.testing.assert_close(slope.sum(), torch.tensor(10.0))


def not_numbers() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Values of a level of 3 x 4, locations and weights, of which some are no numbers."""
    values, locations, weights = (x.float() for x in example([(3, 4)], 1, 6, 1, 2, 3) if isinstance(x, Tensor))
    cases = {}
    for name, place in {"x": (0, 0), "y": (0, 1), "both": (0, slice(None)), "one beyond": (1, 0)}.items():
        wrong = locations.clone()
        wrong[:, 2, :, :, place[0], place[1]] = torch.nan
        if name == "one beyond":
            wrong[:, 2, :, :, 1, 1] = 7.0
        cases[f"location, {name}"] = values, wrong, weights
    outside, spoiled = locations.clone(), weights.clone()
    outside[:, 3] = 9.0
    spoiled[:, 3] = torch.nan
    cases["weight of a point outside"] = values, outside, spoiled
    spoiled = weights.clone()
    spoiled[:, 1] = torch.inf
    cases["infinite weight"] = values, locations, spoiled
    hollow = values.clone()
    hollow[:, 5] = torch.nan
    cases["value"] = hollow, locations, weights
    return cases


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("case", not_numbers())
def test_what_is_no_number_stays_visible_as_by_sampling(case: str) -> None:
    values, locations, weights = not_numbers()[case]
    inputs = (values, [(3, 4)], locations, weights)
    truth = differentiated(by_sampling, inputs)
    for mine, theirs in zip(differentiated(deformable_attention, inputs), truth, strict=True):
        if case == "infinite weight":  # of which differences are taken, before or after it
            finite = theirs.isfinite()
            assert torch.equal(mine.isfinite(), finite)
            mine, theirs = mine[finite], theirs[finite]
        torch.testing.assert_close(mine, theirs, equal_nan=True, rtol=1e-4, atol=1e-5)
    if case.startswith("location"):  # by gathering, output and gradient of the values are the same
        for mine, theirs in zip(differentiated(by_gathering, inputs)[:2], truth[:2], strict=True):
            torch.testing.assert_close(mine, theirs, equal_nan=True, rtol=1e-4, atol=1e-5)


def test_strides_and_layouts() -> None:
    values, shapes, locations, weights = inputs = example(channels=6)
    truth = differentiated(deformable_attention, inputs)
    channels_first = values.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    heads_first = values.transpose(1, 2).contiguous().transpose(1, 2)
    window = torch.randn(3, values.shape[1] + 2, 5, 9)
    window[1:, 1:-1, 2:4, 3:9] = values
    points_first = locations.permute(4, 5, 0, 1, 2, 3).contiguous().permute(2, 3, 4, 5, 0, 1)
    queries_last = weights.transpose(1, 4).contiguous().transpose(1, 4)
    for given_values in (channels_first, heads_first, window[1:, 1:-1, 2:4, 3:9]):
        found = differentiated(deformable_attention, (given_values, shapes, points_first, queries_last))
        assert all(torch.equal(a, b) for a, b in zip(found, truth, strict=True))
    expanded = values[:1].expand(2, -1, -1, -1)
    torch.testing.assert_close(
        deformable_attention(expanded, shapes, locations, weights), by_gathering(expanded, shapes, locations, weights)
    )
    leaf, _, *others = exact(inputs)
    (gradient,) = torch.autograd.grad(deformable_attention(leaf, shapes, *others).sum(), leaf)  # of an expanded one
    up = torch.ones(2, 7, 12)
    torch.testing.assert_close(gradient, cpu.load().deformable_attention_backward(up, *flat(inputs))[0])


def flat(inputs: Any) -> tuple[Any, ...]:
    """With the sizes of the levels as the library takes them."""
    values, shapes, locations, weights = inputs
    return values, [side for shape in shapes for side in shape], locations, weights


@pytest.mark.parametrize(("batch", "queries"), [(0, 3), (2, 0), (0, 0)])
@pytest.mark.parametrize("name", ["auto", "eager"])
def test_nothing_to_do(batch: int, queries: int, name: backend.Backend) -> None:
    inputs = example(batch=batch, queries=queries)
    with backend.use(name):
        out, *gradients = differentiated(deformable_attention, inputs)
    assert out.shape == (batch, queries, 8)
    for gradient, x in zip(gradients, (inputs[0], *inputs[2:]), strict=True):
        torch.testing.assert_close(gradient, torch.zeros_like(x))


def test_refusals() -> None:
    values, shapes, locations, weights = example()
    with backend.use("native"):
        with pytest.raises(InputError, match=r"native takes float32, bfloat16 or float16, got \['torch\.float64'"):
            deformable_attention(values.double(), shapes, locations, weights)
        with pytest.raises(InputError, match="needs at least one cell and one query"):
            deformable_attention(values, shapes, locations[:, :0], weights[:, :0])
        with pytest.raises(InputError, match="at most 16 levels, got 17"):
            deformable_attention(*example([(1, 1)] * 17))
    with backend.use("triton"), pytest.raises(InputError, match="triton takes"):
        deformable_attention(values.double(), shapes, locations, weights)
    for name in ("auto", "native", "eager"):
        with backend.use(name):
            with pytest.raises(InputError, match="do not match the levels"):
                deformable_attention(values, shapes[:2], locations, weights)
            with pytest.raises(InputError, match="2 heads and 3 levels"):
                deformable_attention(values, shapes, locations[:, :, :1], weights)
            with pytest.raises(InputError, match="values have a batch of 2, locations of 1"):
                deformable_attention(values, shapes, locations[:1], weights[:1])
            with pytest.raises(InputError, match="at least one level, of a height and width of at least 1"):
                deformable_attention(values, [*shapes[:2], (-1, -1)], locations, weights)
            with pytest.raises(InputError, match="weights on meta"):
                deformable_attention(values, shapes, locations, weights.to("meta"))
            with pytest.raises(InputError, match=r"must be \(B, S, H, D\)"):
                deformable_attention(values[0], shapes, locations, weights)


def test_other_dtypes() -> None:
    """Whatever the inputs are, the output is float32 at least, and each gradient is of its input's dtype."""
    values, shapes, locations, weights = inputs = example()
    truth = by_sampling(values.double(), shapes, locations.double(), weights.double())
    assert deformable_attention(values.double(), shapes, locations, weights).dtype == torch.float64
    assert deformable_attention(values, shapes, locations.double(), weights).dtype == torch.float64
    for kinds in ((torch.bfloat16, torch.float32, torch.bfloat16), (torch.float16,) * 3, (torch.float32,) * 3):
        halves = [x.to(kind) for x, kind in zip((inputs[0], *inputs[2:]), kinds, strict=True)]
        out, *gradients = differentiated(deformable_attention, (halves[0], shapes, *halves[1:]))
        assert out.dtype == torch.float32
        assert tuple(gradient.dtype for gradient in gradients) == kinds
        torch.testing.assert_close(out.double(), truth, rtol=0.05, atol=0.05)


def test_keeps_its_inputs_alone() -> None:
    values, shapes, locations, weights = exact(example(queries=50, channels=32))
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        deformable_attention(values, shapes, locations, weights)
    assert sum(kept.values()) == values.nbytes + locations.nbytes + weights.nbytes


def test_checkpointing_gives_the_same_gradients() -> None:
    def checkpointed(*inputs: Any) -> Tensor:
        out: Tensor = checkpoint(deformable_attention, *inputs, use_reentrant=False)
        return out

    inputs = example()
    for a, b in zip(differentiated(checkpointed, inputs), differentiated(deformable_attention, inputs), strict=True):
        assert torch.equal(a, b)


# ---- the layer ----


class Pyramid(nn.Module):
    """The layer on feature maps, which are also the queries."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = DeformableAttention(8, heads=2, levels=2, points=2)
        nn.init.normal_(self.layer.sampling_offsets.weight, std=0.3)
        nn.init.normal_(self.layer.attention_weights.weight)

    def forward(self, *maps: Tensor) -> Tensor:
        shapes = [(x.shape[2], x.shape[3]) for x in maps]
        x = torch.cat([level.flatten(2) for level in maps], 2).transpose(1, 2)
        references = torch.full((1, 1, 1, 2), 0.45)
        out: Tensor = self.layer(x, x, shapes, references.expand(*x.shape[:2], 1, 2))
        return out


def maps_of(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 8, *size, generator=generator) for size in sizes]


def stepped(model: nn.Module, call: Callable[..., Tensor], maps: list[Tensor]) -> list[Tensor]:
    model.zero_grad()
    out = call(*maps)
    out.sin().sum().backward()
    return [out.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def test_fused_and_plain_layers_agree_and_fusing_is_undone() -> None:
    plain, fused = Pyramid(), fuse(Pyramid())
    assert type(fused.layer) is FusedDeformableAttention
    assert fused.state_dict().keys() == plain.state_dict().keys()
    maps = maps_of((4, 5), (2, 3))
    with backend.use("native"):
        ours = stepped(fused, fused, maps)
    for a, b in zip(ours, stepped(plain, plain, maps), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert type(fuse(fused, undo=True).layer) is DeformableAttention


def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows with every call of the CPU kernels."""
    calls: list[str] = []
    for name in ("deformable_attention", "deformable_attention_backward"):
        function = getattr(cpu.Library, name)

        def noted(self: cpu.Library, *args: Any, _name: str = name, _function: Any = function) -> Any:
            calls.append(_name)
            return _function(self, *args)

        monkeypatch.setattr(cpu.Library, name, noted)
    return calls


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")  # of shapes, which are constants
def test_who_sees_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and inference do, also after a layer was changed; exporters, tracers and transforms do not."""
    calls = called(monkeypatch)
    model, maps = fuse(Pyramid()), maps_of((4, 5), (2, 3))
    stepped(model, model, maps)
    assert calls == ["deformable_attention", "deformable_attention_backward"]
    with torch.no_grad():
        truth = model(*maps)
    assert len(calls) == 3
    calls.clear()
    exported = torch.export.export(model, tuple(maps))
    assert not any("focalnet" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(*maps), truth)
    with torch.no_grad():
        traced = torch.jit.trace(model, tuple(maps), check_trace=False)
        torch.testing.assert_close(traced(*maps), truth)
    tangent = torch.func.jvp(lambda x: model(x, maps[1]), (maps[0],), (maps[0].cos(),))[1]
    each = torch.func.vmap(lambda x, y: model(x[None], y[None])[0])(*maps)
    torch.testing.assert_close(each, truth)
    assert not calls
    with torch.no_grad():
        moved = (model(maps[0] + 1e-3 * maps[0].cos(), maps[1]) - model(maps[0] - 1e-3 * maps[0].cos(), maps[1])) / 2e-3
    torch.testing.assert_close(tangent, moved, rtol=0.02, atol=0.02)
    with backend.use("eager"):
        calls.clear()
        model(*maps)
    assert not calls


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


CHANGES: dict[str, Callable[[DeformableAttention], object]] = {
    "weight in place": lambda layer: layer.value_proj.weight.data.mul_(2),
    "another layer": lambda layer: setattr(layer, "value_proj", nn.Sequential(nn.Linear(8, 8), Doubled())),
    "hook": lambda layer: layer.sampling_offsets.register_forward_hook(lambda *args: args[-1] + 0.5),
    "patched forward": lambda layer: setattr(layer.output_proj, "forward", lambda x: 3 * x),
    "parametrization": lambda layer: parametrize.register_parametrization(layer.value_proj, "weight", Doubled()),
    "bfloat16": lambda layer: layer.bfloat16(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_layer_gives_what_the_plain_one_gives(change: str) -> None:
    plain, fused = Pyramid(), fuse(Pyramid())
    maps = maps_of((4, 5), (2, 3))
    results = []
    for model in (plain, fused):
        torch.manual_seed(5)
        before = model(*maps)
        CHANGES[change](model.layer)
        dtype = next(model.parameters()).dtype
        results.append(model(*(x.to(dtype) for x in maps)).float())
        assert not torch.equal(results[-1], before)
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5 if change != "bfloat16" else 0.02)


def test_one_graph_for_all_sizes() -> None:
    model, made = fuse(Pyramid()), []

    def count(module: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        made.append(module)
        return module.forward

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=count, fullgraph=True, dynamic=True)
    for sizes in [((6, 7), (3, 5)), ((4, 5), (2, 3)), ((9, 4), (5, 2))]:  # at first no two sides are the same
        maps = maps_of(*sizes)
        torch.testing.assert_close(compiled(*maps), model(*maps))
    torch._dynamo.reset()
    assert len(made) == 1
    assert any("deformable_attention" in str(node.target) for node in made[0].graph.nodes)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_gradients() -> None:
    model, maps = fuse(Pyramid()), maps_of((4, 5), (2, 3))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with backend.use("native"):
        found = stepped(model, compiled, maps)
    with backend.use("eager"):
        truth = stepped(model, model, maps)
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def test_under_autocast() -> None:
    model, maps = fuse(Pyramid()), maps_of((4, 5), (2, 3))
    with torch.autocast("cpu", torch.bfloat16):
        with backend.use("native"):
            ours = stepped(model, model, maps)
        with backend.use("eager"):
            theirs = stepped(model, model, maps)
    truth = stepped(model, model, maps)
    for mine, eager, true in zip(ours, theirs, truth, strict=True):
        assert float((mine - true).norm()) <= 2 * float((eager - true).norm()) + 1e-3 * float(true.norm())


def test_default_shapes_are_those_of_the_example() -> None:
    """What the tests above lean on: several levels, one of a single cell, and points on both sides of the edges."""
    values, shapes, locations, _ = example()
    assert shapes == SHAPES
    assert shapes[-1] == (1, 1)
    inside = ((locations > 0) & (locations < 1)).all(-1)
    assert 0.1 < float(inside.float().mean()) < 0.9
    assert values.shape[2] == 2
