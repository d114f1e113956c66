"""What does not compile, start or compute rightly on a GPU becomes a reason: every step is made to fail."""

from __future__ import annotations

import json
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from focalnet.errors import InputError
from focalnet.kernels import backend, dispatch, focal_context, reference, triton
from focalnet.kernels.triton import proof

pytest.importorskip("triton", reason="the GPU kernels need the package triton")
op = pytest.importorskip("focalnet.kernels.triton.op")
tiling = pytest.importorskip("focalnet.kernels.triton.tiling")

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="simulates a GPU")
GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _forgetful() -> Iterator[None]:
    """Nothing that one test finds out is known to another."""
    _forget()
    yield
    _forget()


def _forget() -> None:
    triton._loaded.cache_clear()
    proof.warn.cache_clear()
    proof._denied.clear()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine that says it has a GPU; the folder of its verdicts."""
    monkeypatch.setattr(op, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "focalnet" / "gpu_kernels"


def answer(monkeypatch: pytest.MonkeyPatch, result: Any) -> list[Any]:
    """Lets the process of the check end so; returns the list of its calls."""
    calls: list[Any] = []

    def run(command: list[str], **_: Any) -> Any:
        calls.append(command)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def ended(stdout: str = "", stderr: str = "", code: int = 0) -> SimpleNamespace:
    return SimpleNamespace(stdout=stdout, stderr=stderr, returncode=code)


FAILURES = {
    "no C compiler": (
        ended("", "Traceback\nRuntimeError: Failed to find C compiler.\n", 1),
        "Failed to find C compiler",
    ),
    "no Python.h": (
        ended("", "subprocess.CalledProcessError: Command '['gcc']' returned 1\n", 1),
        "CalledProcessError",
    ),
    "cache folder": (
        ended("", "PermissionError: [Errno 13] Permission denied: '/root/.triton'\n", 1),
        "Permission denied",
    ),
    "out of resources": (ended("", "OutOfResources: out of resource: shared memory\n", 1), "out of resource"),
    "driver": (ended("", "RuntimeError: Triton Error [CUDA]: device kernel image is invalid\n", 1), "Triton Error"),
    "killed": (ended(code=-11), "exit code -11"),
    "hangs": (subprocess.TimeoutExpired("python", 300), "within 300 seconds"),
    "no process": (FileNotFoundError(2, "No such file"), "cannot be checked"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_step_that_fails_is_the_reason(failure: str, gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, message = FAILURES[failure]
    calls = answer(monkeypatch, result)
    with pytest.warns(RuntimeWarning, match=r"models run on PyTorch's operations") as caught:
        reasons = [dispatch.missing_triton(GPU, torch.float32, (3, 5), True) for _ in range(3)]
    assert message in str(reasons[0])
    assert len(set(reasons)) == len(caught) == len(calls) == 1
    assert not gpu.exists()  # the user may mend it: the next process asks again
    assert "no: the GPU kernels" in backend.available()["triton"]  # what focalnet doctor shows
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            dispatch.missing_triton(GPU, torch.float32, (3, 5), False) == reasons[0]
        )  # by name: raised, not warned of


def test_a_triton_that_breaks_while_loading_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> Any:
        raise OSError("libcuda.so.1: wrong ELF class")

    monkeypatch.setattr(triton.importlib, "import_module", broken)
    with pytest.raises(triton.Unusable, match="wrong ELF class"):
        triton.load(GPU)


def test_verdicts_are_stored_for_what_they_depend_on(gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = answer(monkeypatch, ended("verdict null\n"))
    for _ in range(2):  # as in two processes
        triton._loaded.cache_clear()
        assert triton.load(GPU).endswith("on Some GPU")
    assert len(calls) == 1
    assert calls[0][-2:] == ["0", "bfloat16"]
    triton.load(GPU, torch.float16)
    monkeypatch.setattr(proof, "_driver", lambda: "another")
    triton._loaded.cache_clear()
    triton.load(GPU)
    monkeypatch.setattr(torch, "__version__", "another")
    triton._loaded.cache_clear()
    triton.load(GPU)
    assert len(calls) == len(list(gpu.iterdir())) == 4
    next(gpu.iterdir()).write_text("half a fi")
    triton._loaded.cache_clear()


def test_verdicts_that_cannot_be_stored_are_no_error(gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.parent.write_text("a file where the folder would be")
    answer(monkeypatch, ended("verdict null\n"))
    assert triton.load(GPU)


@pytest.mark.usefixtures("gpu")
def test_wrong_numbers_are_said_with_their_error(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = answer(monkeypatch, ended("verdict " + json.dumps("the output is off by 1.0e-01")))
    for _ in range(2):
        triton._loaded.cache_clear()
        with pytest.raises(triton.Unusable, match=r"are wrong on Some GPU: the output is off by 1\.0e-01"):
            triton.load(GPU)
    assert len(calls) == 1


def test_the_check_accepts_these_kernels_and_finds_wrong_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "WIDTHS", (1,))  # the interpreter's time
    monkeypatch.setattr(proof, "_SHAPES", ((1, 3, 4, 5),))
    for plane in (0, 2**30):
        monkeypatch.setattr(tiling, "PLANE_PIXELS", plane)
        assert proof.disagreement(torch.device("cpu"), torch.float32) is None
    weight_gradients = op._weight_gradients
    monkeypatch.setattr(op, "_weight_gradients", lambda *arguments: 1.01 * weight_gradients(*arguments))
    assert "the gradient of a kernel of a feature map" in str(proof.disagreement(torch.device("cpu"), torch.float32))


def inputs() -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    return torch.randn(1, 4, 4, 8, requires_grad=True), torch.randn(1, 4, 4, 2), [torch.randn(8, 1, 3, 3)]


@pytest.mark.parametrize("failing", ["plane_kernel", "plane_gradient_kernel"])
def test_a_specialization_that_fails_later_is_denied(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward or backward: the numbers are the reference's, and the next call does not try again."""
    launch = op._launch

    def fail(kernel: Any, *arguments: Any, **constants: Any) -> None:
        if kernel.__name__ == failing:
            raise RuntimeError("out of resource: registers\nand more")
        launch(kernel, *arguments, **constants)

    monkeypatch.setattr(tiling, "WIDTHS", (1,))
    monkeypatch.setattr(op, "_launch", fail)
    context, gates, weights = inputs()

    def with_gradient(function: Any) -> tuple[torch.Tensor, torch.Tensor]:
        out = function(context, gates, weights)
        return out, torch.autograd.grad(out.square().sum(), context)[0]

    with pytest.warns(RuntimeWarning, match=r"sizes \[3\] in float32 .*out of resource: registers;") as caught:
        out, slope = with_gradient(triton.focal_context)
    assert len(caught) == 1
    torch.testing.assert_close((out, slope), with_gradient(reference.focal_context))
    assert "out of resource" in str(dispatch.missing_triton(context.device, torch.float32, (3,), True))
    assert dispatch.missing_triton(context.device, torch.float32, (5,), True) is None
    with backend.use("triton"), pytest.raises(InputError, match=r"cannot run: .*out of resource"):
        focal_context(context, gates, weights)


def test_by_name_an_error_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of resource")

    monkeypatch.setattr(op, "_launch", fail)
    with backend.use("triton"), pytest.raises(RuntimeError, match="out of resource"):
        focal_context(*inputs())


def test_the_process_of_the_check_starts() -> None:
    """Here it ends with the reason: there is no GPU."""
    with pytest.raises(InputError, match=r"do not compile or start: .*(CUDA|NVIDIA|cuda)"):
        proof._asked(GPU, torch.float32)
