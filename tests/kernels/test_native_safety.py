"""Nothing that reaches the kernels can make them read or write what is not theirs, nor can a damaged library."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import focalnet
from focalnet.errors import InputError
from focalnet.kernels import backend, cpu
from focalnet.kernels.cpu import library_file, proof
from focalnet.kernels.cpu.arguments import Steps
from focalnet.kernels.fuse import fuse
from focalnet.kernels.rowwise import layer_norm
from focalnet.nn import FocalModulation, FocalNetBlock, Mlp

pytestmark = pytest.mark.skipif(not cpu.built(), reason="the CPU kernels were not built")

C = 5
STEPS = Steps(0.02, 100)


def arguments() -> dict[str, tuple[Any, ...]]:
    """What each function of the library takes, all of it right."""
    x, moments = torch.randn(2, 3, 4, C), torch.rand(24, 2)
    gates, kernels = torch.randn(2, 3, 4, 3), [torch.randn(C, 1, 3, 3), torch.randn(C, 1, 5, 5)]
    sampled = torch.randn(2, 7, 3, C), [2, 3, 1, 1], torch.rand(2, 4, 3, 2, 2, 2), torch.rand(2, 4, 3, 2, 2)
    return {
        "forward": (x, gates, kernels),
        "backward": (torch.randn_like(x), x, gates, kernels),
        "layer_norm": (x, torch.randn(C), torch.randn(C), 1e-5),
        "layer_norm_backward": (torch.randn_like(x), x, torch.randn(C), moments, torch.randn_like(x)),
        "gelu_": (x,),
        "gelu_backward": (torch.randn_like(x), x),
        "column_sum": (x,),
        "quantize": (x, STEPS),
        "quantize_gelu": (x, STEPS),
        "quantize_norm": (x, torch.randn(C), torch.randn(C), 1e-5, STEPS),
        "quantize_product": (x, torch.randn_like(x), STEPS),
        "deformable_attention": sampled,
        "deformable_attention_backward": (torch.randn(2, 4, 3 * C), *sampled),
    }


def call(name: str, values: tuple[Any, ...]) -> Any:
    options = {"recompute": True} if name == "gelu_backward" else {}
    return getattr(cpu.load(), name)(*values, **options)


class Subclass(torch.Tensor):
    pass


def freed(x: Tensor) -> Tensor:
    x = x.clone()
    x.untyped_storage().resize_(0)
    return x


def cut(x: Tensor) -> Tensor:
    x = x.clone()
    x.untyped_storage().resize_(x.nbytes - 4)
    return x


# Each makes of a right tensor one that must be refused.
FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "on meta": lambda x: x.to("meta"),
    "float64": Tensor.double,
    "float16": Tensor.half,
    "integers": Tensor.int,
    "complex": lambda x: torch.complex(x, x),
    "sparse": Tensor.to_sparse,
    "a subclass": lambda x: x.as_subclass(Subclass),
    "a negative view": lambda x: torch.complex(x, x).conj().imag,
    "without memory": lambda x: torch._efficientzerotensor(x.shape),
    "freed": freed,
    "cut": cut,
    "empty": lambda x: x[:0],
    "one column less": lambda x: x[..., :-1],
    "one column more": lambda x: torch.cat([x, x[..., :1]], -1),
    "one axis more": lambda x: x[None],
    "one axis less": lambda x: x.flatten(0, 1) if x.ndim > 1 else x[0],
    "one row less": lambda x: x[..., :-1, :] if x.ndim > 1 else x[:-1],
}
CONVERTED = {"float64", "float16"}  # parameters may have any floating dtype: the kernels get a copy in float32


def places(name: str) -> list[tuple[int, int | None]]:
    """Of every tensor among the arguments; of those in a list with the place in it."""
    found: list[tuple[int, int | None]] = []
    for i, value in enumerate(arguments()[name]):
        if isinstance(value, list) and isinstance(value[0], Tensor):
            found += [(i, j) for j in range(len(value))]
        elif isinstance(value, Tensor):
            found.append((i, None))
    return found


# Of tensors that stand alone every shape is right.
ANY_SHAPE = {(name, 0) for name in ("gelu_", "column_sum", "quantize", "quantize_gelu")}
ANY_ROWS = {("layer_norm", 0), ("quantize_norm", 0)}
ANY_COLUMNS = {*ANY_SHAPE, ("deformable_attention", 0)}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", arguments())
def test_every_argument_of_every_kind_is_refused(name: str, fault: str) -> None:
    for place, within in places(name):
        values = list(arguments()[name])
        right = values[place] if within is None else values[place][within]
        wrong = FAULTS[fault](right)
        is_parameter = within is not None or right.ndim == 1 or (name == "layer_norm_backward" and place == 3)
        if fault in CONVERTED and is_parameter:
            continue
        if fault.startswith("one ") and (name, place) in (ANY_COLUMNS if "column" in fault else ANY_SHAPE | ANY_ROWS):
            continue
        if within is None:
            values[place] = wrong
        else:
            values[place] = [wrong if j == within else kernel for j, kernel in enumerate(values[place])]
        with pytest.raises(InputError):
            call(name, tuple(values))


def test_a_norm_of_other_columns() -> None:
    """A norm of 96 numbers on 192 channels read foreign memory; of 4 numbers on many columns it crashed."""
    library = cpu.load()
    for columns, numbers in ((192, 96), (6_000_000, 4)):
        with pytest.raises(InputError, match=rf"weight has the shape \({numbers},\), expected \({columns},\)"):
            library.layer_norm(torch.randn(2, columns), torch.ones(numbers), torch.ones(numbers), 1e-5)
        for grad in (False, True):
            weight = torch.ones(numbers)
            with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match="normalized_shape"):
                layer_norm(torch.randn(2, columns), weight, weight, 1e-5)


@pytest.mark.parametrize("grad", [False, True])
def test_weights_on_meta_are_refused_by_every_layer(grad: bool) -> None:
    x = torch.randn(2, 16, 16, 96)
    block = FocalNetBlock(96, FocalModulation(96, 2, 3), mlp_ratio=2)
    modules = [fuse(module) for module in (Mlp(96, 8), FocalModulation(96, 2, 3), block)]
    model = focalnet.create_model("focalnet_tiny_srf")
    with torch.set_grad_enabled(grad):
        for module in modules:
            for name, parameter in module.named_parameters():
                owner, _, leaf = name.rpartition(".")
                setattr(module.get_submodule(owner), leaf, torch.nn.Parameter(parameter.to("meta")))
                with pytest.raises((InputError, RuntimeError), match="meta"):
                    module(x)
                setattr(module.get_submodule(owner), leaf, parameter)
        with pytest.raises(InputError, match="weights are on the meta device"):
            model.to("meta")(torch.randn(1, 3, 64, 64))


shapes = st.lists(st.integers(0, 6), max_size=5).map(tuple)


@st.composite
def anything(draw: st.DrawFn) -> Tensor:
    """A tensor of any shape and strides, most of which do not fit."""
    dtype = draw(
        st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
    )
    x = torch.ones(draw(st.one_of(shapes, st.sampled_from([(2, 3, 4, C), (2, 3, 4, 3), (24, 2), (C,), (C, 1, 3, 3)]))))
    x = x.to(dtype)
    if x.ndim and draw(st.booleans()):
        x = x.transpose(0, -1)
    if x.ndim and draw(st.booleans()):
        x = x[..., ::2]
    if draw(st.integers(0, 9)) == 0:
        x = x.to("meta")
    return x


@settings(max_examples=400)
@given(name=st.sampled_from(sorted(arguments())), data=st.data())
def test_any_arguments(name: str, data: st.DataObject) -> None:
    """Some of the arguments are replaced by anything: a clear refusal, or a result of the right shape."""
    values = list(arguments()[name])
    for place, within in places(name):
        if data.draw(st.booleans()):
            wrong = data.draw(anything())
            if within is None:
                values[place] = wrong
            else:
                values[place] = [wrong if j == within else kernel for j, kernel in enumerate(values[place])]
    try:
        result = call(name, tuple(values))
    except InputError:
        return
    for out in torch.utils._pytree.tree_leaves(result):
        assert out.device.type == "cpu"


@pytest.mark.parametrize("threads", [1, 2, 3, 7, 64])
def test_every_function_gives_the_same_bits_for_any_number_of_threads(threads: int) -> None:
    torch.manual_seed(0)
    x, moments = torch.randn(3, 17, 13, 40), torch.rand(3 * 17 * 13, 2)
    gates, kernels = torch.randn(3, 17, 13, 3), [torch.randn(40, 1, k, k) for k in (3, 5)]
    cases: dict[str, tuple[Any, ...]] = {
        "forward": (x, gates, kernels),
        "backward": (x.cos(), x, gates, kernels),
        "layer_norm": (x, torch.randn(40), torch.randn(40), 1e-5),
        "layer_norm_backward": (x.cos(), x, torch.randn(40), moments),
        "gelu_backward": (x.cos(), x),
        "column_sum": (x,),
        "deformable_attention": (
            x.view(3, -1, 2, 20),
            [13, 17],
            torch.rand(3, 37, 2, 1, 4, 2),
            torch.rand(3, 37, 2, 1, 4),
        ),
    }
    cases["deformable_attention_backward"] = (torch.randn(3, 37, 40), *cases["deformable_attention"])
    before = torch.get_num_threads()
    for name, values in cases.items():
        alone = torch.utils._pytree.tree_leaves(_with_threads(1, name, values))
        many = torch.utils._pytree.tree_leaves(_with_threads(threads, name, values))
        assert all(torch.equal(a, b) for a, b in zip(alone, many, strict=True)), name
    assert torch.get_num_threads() == before


def _with_threads(threads: int, name: str, values: tuple[Any, ...]) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return call(name, values)
    finally:
        torch.set_num_threads(before)


# ---- the library itself ----


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the library is looked for; nothing is known of it yet."""
    monkeypatch.setattr(library_file, "_FOLDER", tmp_path)
    monkeypatch.setattr(cpu, "_loaded", cpu._loaded.__wrapped__)
    return tmp_path


WHOLE = next(library_file.candidates()) if cpu.built() else Path()


def sealed(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest() + library_file._SEAL


def older(folder: Path) -> bytes:
    """A library that loads, of a version that knew nothing of versions."""
    source = folder / "older.cpp"
    source.write_text('extern "C" int focalnet_variants() { return 1; }\n')
    subprocess.run(["c++", "-shared", "-fPIC", source, "-o", folder / "older.so"], check=True)
    return sealed((folder / "older.so").read_bytes())


DAMAGE: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "empty": (lambda _: b"", "truncated"),
    "cut in the middle": (lambda _: WHOLE.read_bytes()[: WHOLE.stat().st_size // 2], "truncated"),
    "one byte less": (lambda _: WHOLE.read_bytes()[:-1], "truncated"),
    "a web page": (lambda _: b"<!DOCTYPE html><html>404</html>", "truncated, or of another version"),
    "without its seal": (lambda _: WHOLE.read_bytes()[: -32 - len(library_file._SEAL)], "of another version"),
    "one bit": (lambda _: flipped(WHOLE.read_bytes()), "damaged"),
    "no library": (lambda _: sealed(b"\x7fELF and nothing else"), "do not load"),
    "older": (older, "do not load|another version"),
}


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system checks libraries itself")
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_library_is_as_none(damage: str, folder: Path) -> None:
    content, reason = DAMAGE[damage]
    (folder / "_kernels.so").write_bytes(content(folder))
    with pytest.raises(InputError, match=reason):
        cpu.load()
    assert "no: the CPU kernels" in backend.available()["native"]
    runs()


def runs() -> None:
    """A model gives the same without the kernels, trained or not."""
    torch.manual_seed(0)
    model = focalnet.create_model("focalnet_nano", num_classes=3).eval()
    x = torch.randn(1, 3, 32, 32)
    with backend.use("eager"):
        truth = model(x)
    torch.testing.assert_close(model(x), truth)
    model(x).sum().backward()
    focalnet.optimize(model)
    with torch.no_grad():
        torch.testing.assert_close(model(x), truth.detach())


def test_a_missing_library(folder: Path) -> None:
    with pytest.raises(InputError, match="were not built: install a C"):
        cpu.load()
    runs()


def test_one_of_two_libraries_is_damaged(folder: Path) -> None:
    (folder / "_kernels.aaa.so").write_bytes(b"old")
    shutil.copy(WHOLE, folder / "_kernels.bbb.so")
    assert cpu.load().variant


def test_kernels_that_compute_wrongly_are_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(WHOLE, folder / WHOLE.name)
    right = cpu.Library.layer_norm_backward

    def wrong(self: cpu.Library, *values: Any, **options: Any) -> Any:
        grad, parameters = right(self, *values, **options)
        return grad * 1.001, parameters

    monkeypatch.setattr(cpu.Library, "layer_norm_backward", wrong)
    with pytest.warns(RuntimeWarning, match="gradient of layer_norm in float32 is off by") as told:
        reason = cpu._loaded()
    assert len(told) == 1
    monkeypatch.setattr(cpu, "_loaded", lambda: reason)
    assert "wrong on this machine" in backend.available()["native"]
    runs()


@pytest.mark.parametrize("variant", cpu.load().variants if cpu.built() else [])
def test_every_variant_proves_itself(variant: str) -> None:
    library = cpu.Library(WHOLE, variant)
    with torch.no_grad(), torch.autocast("cpu"), torch.device("meta"):  # none of which reaches the thread that tries
        assert proof.disagreement(library) is None
