"""Finetuning by low-rank adapters: what learns, what is kept, what is merged."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("peft", reason="adapters are peft's")

import torch

import focalnet
from focalnet import weights
from focalnet.cli.train import fit, validate
from focalnet.errors import ConfigError, MissingDependency
from focalnet.training.lora import add_adapters
from focalnet.weights.adapters import merged
from tests.models import small
from tests.training.toy import NETWORK, TOY, weights_of

DIGITS = "classification/digits"


def test_adapters_are_merged_to_the_same_outputs():
    network = focalnet.create_model("focalnet_nano", num_classes=3, **NETWORK).eval()
    add_adapters(network, 2)
    state = network.state_dict()
    for name, value in state.items():
        if ".lora_B." in name:
            value.normal_()
    plain = focalnet.create_model("focalnet_nano", num_classes=3, **NETWORK).eval()
    plain.load_state_dict(merged(state))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(plain(images), network(images), atol=1e-5, rtol=1e-5)
    one = "layers.0.blocks.0.mlp.fc1"
    down, up = (state[f"{one}.lora_{half}.default.weight"] for half in "AB")
    by_hand = state[f"{one}.base_layer.weight"] + up @ down
    torch.testing.assert_close(plain.state_dict()[f"{one}.weight"], by_hand)
    assert merged(plain.state_dict()).keys() == plain.state_dict().keys()


def test_only_adapters_and_what_is_above_the_backbone_learn():
    detector = small.config("atss").build()
    add_adapters(detector, 1)
    learn = {name for name, parameter in detector.named_parameters() if parameter.requires_grad}
    assert learn
    assert all(".lora_" in name or not name.startswith("backbone.") for name in learn)
    assert all(name.startswith("backbone.") for name in detector.state_dict() if ".lora_" in name)
    assert {name for name, _ in detector.named_parameters() if not name.startswith("backbone.")} <= learn


def test_a_run_with_adapters_keeps_an_ordinary_network(tmp_path):
    start = focalnet.create_model("focalnet_nano_patch1", num_classes=10, **NETWORK)
    path = weights.save(start, tmp_path / "start.safetensors")
    options = {"model.architecture": None, "model.weights": str(path), "model.lora_rank": 2, "trainer.max_epochs": 2}
    options |= {"model.keep": "last", "model.ema_decay": 0.5}
    run = fit(DIGITS, output=tmp_path / "run", **{**TOY, "model.options": {}, **options})
    before, after = start.state_dict(), weights_of(run)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert {"head.weight", "head.bias", "layers.0.blocks.0.mlp.fc1.weight"} <= changed
    layers = (".f.weight", ".proj.weight", ".fc1.weight", ".fc2.weight")
    assert all(name.startswith("head.") or name.endswith(layers) for name in changed)
    assert not [name for name in changed if "patch_embed" in name or "downsample" in name]
    of_checkpoint = focalnet.load(run / "last.ckpt").state_dict()
    assert of_checkpoint.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in of_checkpoint.items())
    same_images = {"trainer.limit_val_batches": 2, "data.batch_size": 32}
    assert run.metrics["top1"] == pytest.approx(validate(DIGITS, run / "model.safetensors", **same_images)["top1"])


def test_what_adapters_need(monkeypatch):
    network = focalnet.create_model("focalnet_nano", num_classes=3, **NETWORK)
    with pytest.raises(ConfigError, match="lora_rank=0"):
        add_adapters(network, 0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDependency, match=r"focalnet\[lora\]"):
        add_adapters(network, 2)
