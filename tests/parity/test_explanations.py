"""Recorded gates and modulators against those of the official classification code, one test a case."""

from __future__ import annotations

import torch

from focalnet import ClassifierConfig
from focalnet.explanations import block_names, record
from tests.parity.golden import Case, assert_forward, cases, weights


@cases("classification/*.json")
def test_gates_and_modulators(case: Case) -> None:
    expected = case.tensors
    model = ClassifierConfig.from_official(case.facts["config"]).build().eval()
    model.load_state_dict(weights(expected))

    with torch.no_grad(), record(model, block_names(model)) as records:
        model(expected["input"])

    compared = set()
    for name, record_of_block in records.items():
        _, stage, _, block = name.split(".")
        assert_forward(record_of_block.gates, expected[f"block.{stage}.{block}.gates"])
        assert_forward(record_of_block.modulator, expected[f"block.{stage}.{block}.modulator"])
        compared |= {f"block.{stage}.{block}.gates", f"block.{stage}.{block}.modulator"}
    assert compared == {key for key in expected if key.startswith("block.")}
