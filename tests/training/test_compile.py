"""``model.compile`` compiles what is trained, whatever the family, and leaves everything else as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from tests.training.families import FAMILIES, data_for, step, task_for, write_data


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def counter(monkeypatch):
    """Counts what is compiled in place; the graphs run as they are, which is faster than Inductor in a test."""
    torch._dynamo.reset()
    counting = CompileCounterWithBackend("eager")
    original = nn.Module.compile

    def compiled(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **{"backend": counting, **kwargs})

    monkeypatch.setattr(nn.Module, "compile", compiled)
    yield counting
    torch._dynamo.reset()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_training_step_runs_compiled_graphs(family, root, counter, tmp_path):
    plain, task = task_for(family, ema_decay=0.5), task_for(family, ema_decay=0.5, compile=True)
    step(plain, data_for(family, root), tmp_path)
    assert counter.frame_count == 0
    trainer = step(task, data_for(family, root), tmp_path)
    assert counter.frame_count == 1  # the whole backbone is one graph
    products = sum(node.op == "call_function" for graph in counter.graphs for node in graph.graph.nodes)
    assert products > 50
    assert list(task.state_dict()) == list(plain.state_dict())
    assert not any("_orig_mod" in name for name in task.state_dict())
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert list(saved) == list(plain.state_dict())
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(saved[name], value, rtol=1e-3, atol=1e-4, msg=name)
