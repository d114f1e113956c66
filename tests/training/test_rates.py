"""Each option of learning rates and freezing reaches the parameters it names, and no other, whatever the family."""

from __future__ import annotations

import re
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from focalnet.errors import ConfigError
from focalnet.training.optimizer import OptimizerConfig, ScheduleConfig, parameter_groups
from tests.training.families import DENSE, FAMILIES, data_for, step, task_for, write_data

DEPTHS = (1, 2, 1, 1)
FIRST = (1, 2, 4, 5)  # layer of each stage's first block; 0 is the stem, 6 what is above the backbone
TOP = 6
RATE, DECAY = 1e-2, 0.25
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


class _Start(pl.Callback):
    """The weights before the first update, and which modules are in training mode then."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.weights = {name: value.detach().clone() for name, value in pl_module.network.named_parameters()}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        self.training = {name for name, module in pl_module.network.named_modules() if module.training}
        self.modules = {name for name, _ in pl_module.network.named_modules()}


def layer(family: str, name: str) -> int:
    """How deep a parameter is."""
    if family != "classifier" and not name.startswith("backbone."):
        return TOP
    name = name.removeprefix("backbone.")
    if name.startswith("patch_embed."):
        return 0
    if block := re.match(r"layers\.(\d)\.blocks\.(\d)\.", name):
        return FIRST[int(block[1])] + int(block[2])
    if down := re.match(r"layers\.(\d)\.downsample\.", name):
        return FIRST[int(down[1])]
    return FIRST[-1] if name.startswith("norm") else TOP


def is_frozen(family: str, name: str, stages: int | None) -> bool:
    prefix = "" if family == "classifier" else "backbone."
    if stages is None:
        return False
    places = ("patch_embed", "pos_drop", *(f"layers.{i}" for i in range(stages)))
    return any(f"{name}.".startswith(f"{prefix}{place}.") for place in places)


CASES = [
    (family, layer_decay, scale, frozen)
    for family in FAMILIES
    for layer_decay, scale, frozen in ((None, 0.1, 0), (0.5, 1.0, None), (0.5, 0.1, 2))
    if family != "classifier" or scale == 1.0
] + [("classifier", None, 1.0, 0), ("classifier", 0.5, 1.0, 2)]


@pytest.mark.parametrize(("family", "layer_decay", "scale", "frozen"), CASES)
def test_options_reach_what_they_name_and_nothing_else(family, layer_decay, scale, frozen, root, tmp_path):
    options = {"lr": RATE, "weight_decay": DECAY, "reference_batch": None}
    config = OptimizerConfig(**options, layer_decay=layer_decay, backbone_scale=scale)
    schedule = ScheduleConfig(warmup_epochs=0)
    task = task_for(family, {"depths": DEPTHS}, optimizer=config, schedule=schedule, freeze_stages=frozen)
    start = _Start()
    trainer = step(task, data_for(family, root), tmp_path, callbacks=[start])
    network: nn.Module = task.network
    place = {id(p): group for group in trainer.optimizers[0].param_groups for p in group["params"]}
    counted = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
    assert len(counted) == len(place)  # none twice
    norms = {id(p) for module in network.modules() if isinstance(module, NORMS) for p in module.parameters()}
    for name, parameter in network.named_parameters():
        if is_frozen(family, name, frozen):
            assert id(parameter) not in place, name
            assert not parameter.requires_grad, name
            assert torch.equal(parameter, start.weights[name]), name
            continue
        assert parameter.requires_grad, name
        group = place.pop(id(parameter))
        expected = RATE * (layer_decay or 1.0) ** (TOP - layer(family, name))
        if name.startswith("backbone."):
            expected *= scale
        assert group["initial_lr"] == pytest.approx(expected), name
        assert group["lr"] / group["initial_lr"] == pytest.approx(schedule.learning_rate(1, RATE, 1, 1) / RATE), name
        exempt = id(parameter) in norms or name.endswith("bias") or parameter.ndim <= 1
        assert group["weight_decay"] == (0.0 if exempt else DECAY), name
        if not exempt:
            assert not torch.equal(parameter, start.weights[name]), name
    assert not place
    still = {name for name in start.modules if is_frozen(family, name, frozen)}
    assert start.training == start.modules - still  # no dropout and no drop path in what is frozen


@pytest.mark.parametrize("family", DENSE)
@pytest.mark.parametrize("option", [{"backbone_scale": 0.1}, {"layer_decay": 0.5}])
def test_an_option_that_would_change_no_rate_is_refused(family, option):
    network = task_for(family).build(3)
    network.backbone.requires_grad_(requires_grad=False)
    with pytest.raises(ConfigError, match=f"{next(iter(option))}=.* would change no learning rate"):
        parameter_groups(network, OptimizerConfig(**option))


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_rates_by_layer_are_equal_rates(family):
    network = task_for(family).build(3)
    assert {group["lr_scale"] for group in parameter_groups(network, OptimizerConfig(layer_decay=1.0))} == {1.0}


@pytest.mark.parametrize("stages", [-1, 5])
@pytest.mark.parametrize("family", ["classifier", "upernet"])
def test_stages_that_are_not_there_cannot_be_frozen(family, stages, root, tmp_path):
    with pytest.raises(ConfigError, match=f"cannot freeze {stages} stages: this network has 4"):
        step(task_for(family, freeze_stages=stages), data_for(family, root), tmp_path)
