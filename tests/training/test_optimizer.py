"""Parameter groups and learning rates, against numbers from the official code."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from focalnet import create_model
from focalnet.errors import ConfigError
from focalnet.models import ClassifierConfig
from focalnet.training.optimizer import (
    OptimizerConfig,
    ScheduleConfig,
    build_optimizer,
    build_scheduler,
    parameter_groups,
)
from tests.parity.golden import GOLDEN


@pytest.fixture(scope="module")
def recipe():
    return json.loads((GOLDEN / "training_recipe.json").read_text())


@pytest.fixture
def network():
    return create_model("focalnet_nano_patch1", embed_dim=4, depths=(1, 1), layer_scale=1e-4)


def names_of(network, groups, decayed):
    ids = {id(p) for g in groups if bool(g["weight_decay"]) == decayed for p in g["params"]}
    return {name for name, p in network.named_parameters() if id(p) in ids}


@pytest.mark.parametrize("layer_decay", [None, 0.75])
def test_decayed_parameters_are_those_the_paper_means(recipe, layer_decay):
    official = recipe["weight_decay_groups"]
    network = ClassifierConfig.from_official(official["model"]).build()
    groups = parameter_groups(network, OptimizerConfig(layer_decay=layer_decay))
    assert names_of(network, groups, decayed=True) == set(official["with_empty_keyword_set"]["decay"])
    assert names_of(network, groups, decayed=False) == set(official["with_empty_keyword_set"]["no_decay"])


def test_weight_decay_is_applied(network):
    config = OptimizerConfig(lr=0.1, weight_decay=0.5)
    groups = parameter_groups(network, config)
    decayed = names_of(network, groups, decayed=True)
    for parameter in network.parameters():
        torch.nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    build_optimizer(groups, config).step()
    for name, parameter in network.named_parameters():
        expected = 1 - 0.1 * 0.5 if name in decayed else 1.0
        torch.testing.assert_close(parameter, torch.full_like(parameter, expected), msg=name)


def test_layer_decay_falls_towards_the_stem(network):
    groups = parameter_groups(network, OptimizerConfig(layer_decay=0.5))
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    rates = {name: scale[id(p)] for name, p in network.named_parameters()}
    assert rates["head.weight"] == rates["head.bias"] == 1.0
    assert rates["patch_embed.proj.weight"] < rates["layers.0.blocks.0.mlp.fc1.weight"]
    assert rates["layers.0.blocks.0.mlp.fc1.weight"] < rates["layers.1.blocks.0.mlp.fc1.weight"] < 1.0


def test_frozen_parameters_are_left_out(network):
    network.freeze(1)
    grouped = {id(p) for g in parameter_groups(network, OptimizerConfig()) for p in g["params"]}
    assert grouped == {id(p) for p in network.parameters() if p.requires_grad}
    assert len(grouped) < len(list(network.parameters()))


def test_nothing_left_to_train_is_an_error(network):
    with pytest.raises(ConfigError, match="frozen"):
        parameter_groups(network.requires_grad_(False), OptimizerConfig())


@pytest.mark.parametrize("index", range(6))
def test_learning_rates_equal_the_official_ones(recipe, index):
    case = recipe["lr_schedules"][index]
    fields = ("warmup_epochs", "warmup_lr", "min_lr", "decay_epochs", "decay_rate")
    schedule = ScheduleConfig(kind=case["name"], **{name: case[name] for name in fields})
    for update, expected in case["update_index_and_lr"]:
        rate = schedule.learning_rate(update, case["base_lr"], case["epochs"], case["iters_per_epoch"])
        assert rate == pytest.approx(expected, rel=1e-9), update


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_scheduler_sets_the_rate_of_every_update(network, layer_decay):
    config = OptimizerConfig(lr=1e-3, reference_batch=1024, layer_decay=layer_decay)
    schedule = ScheduleConfig(warmup_epochs=1)
    optimizer = build_optimizer(parameter_groups(network, config), config)
    scheduler = build_scheduler(optimizer, config, schedule, epochs=3, updates_per_epoch=5, global_batch=2048)
    for update in range(15):
        expected = 2 * schedule.learning_rate(update, 1e-3, 3, 5)  # twice the reference batch
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(expected * group.get("lr_scale", 1.0), rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_no_reference_batch_means_no_scaling():
    assert OptimizerConfig(reference_batch=None).scale(8) == 1.0
    assert OptimizerConfig(reference_batch=512).scale(128) == 0.25


@given(
    kind=st.sampled_from(["cosine", "linear", "step"]),
    epochs=st.integers(1, 50),
    updates_per_epoch=st.integers(1, 30),
    warmup=st.floats(0, 10),
    update=st.integers(0, 2000),
)
def test_rates_stay_between_their_limits(kind, epochs, updates_per_epoch, warmup, update):
    schedule = ScheduleConfig(kind=kind, warmup_epochs=warmup, warmup_lr=1e-6, min_lr=1e-5)
    rate = schedule.learning_rate(update, 1e-3, epochs, updates_per_epoch)
    assert rate <= 1e-3 * (1 + 1e-9)
    assert rate >= 0 if kind == "step" else rate >= 1e-6


@pytest.mark.parametrize(
    "wrong", [{"lr": 0}, {"weight_decay": -1}, {"reference_batch": 0}, {"layer_decay": 0}, {"layer_decay": 1.5}]
)
def test_impossible_optimizers_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        OptimizerConfig(**wrong)


@pytest.mark.parametrize("wrong", [{"warmup_epochs": -1}, {"min_lr": -1}, {"decay_epochs": 0}])
def test_impossible_schedules_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ScheduleConfig(**wrong)


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_a_backbone_may_learn_more_slowly(layer_decay):
    detector = create_model("upernet_focalnet_nano")
    plain = OptimizerConfig(layer_decay=layer_decay)
    scaled = OptimizerConfig(layer_decay=layer_decay, backbone_scale=0.1)
    rates = [
        {
            id(p): group["lr"]
            for group in build_optimizer(parameter_groups(detector, config), config).param_groups
            for p in group["params"]
        }
        for config in (plain, scaled)
    ]
    assert rates[0].keys() == rates[1].keys() == {id(p) for p in detector.parameters()}
    for name, parameter in detector.named_parameters():
        factor = 0.1 if name.startswith("backbone.") else 1.0
        assert rates[1][id(parameter)] == pytest.approx(factor * rates[0][id(parameter)])


def test_a_classifier_has_no_backbone_to_scale(network):
    with pytest.raises(ConfigError, match="backbone_scale"):
        parameter_groups(network, OptimizerConfig(backbone_scale=0.1))


def test_eps_is_of_adamw():
    with pytest.raises(ConfigError, match="is AdamW's"):
        OptimizerConfig(name="muon", eps=1e-6)
    assert OptimizerConfig(name="adamw", eps=1e-6).eps == 1e-6
