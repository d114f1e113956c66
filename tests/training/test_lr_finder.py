"""The range test: its rates are those of the option, its suggestion lies where the loss falls, and nothing is kept."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from focalnet.cli.main import main
from focalnet.cli.recipes import find_recipe, merge, nested, read_recipe
from focalnet.errors import ConfigError
from focalnet.training.lr_finder import RangeTest, _Watch, find_learning_rate
from tests.training.toy import TOY

DIGITS = "classification/digits"
RATES = tuple(np.geomspace(1e-6, 1.0, 61).tolist())


def recipe(**changes):
    return merge(read_recipe(find_recipe(DIGITS)), nested({**TOY, **changes}))


def test_the_suggestion_is_where_the_smoothed_loss_falls_most_steeply():
    losses = [2 - 1 / (1 + math.exp(-4 * (math.log10(rate) + 3))) + 50 * max(0, rate - 0.3) for rate in RATES]
    found = RangeTest(RATES, tuple(losses))
    assert found.suggestion is not None
    assert 10**-3.1 < found.suggestion < 10**-2.2  # the average lags behind the losses
    assert RangeTest(RATES, (2.0,) * len(RATES)).suggestion is None
    assert RangeTest(RATES, tuple(2 + 0.1 * i for i in range(len(RATES)))).suggestion is None
    assert RangeTest(RATES[:4], (2.0, 1.0, 0.5, 0.2)).suggestion is None


def test_a_small_fall_is_told_from_noise():
    """What counts is the fall over the noise, not the size of the loss: a large constant term changes nothing."""
    random = np.random.default_rng(0)
    noise = random.normal(0.0, 0.02, (200, len(RATES)))
    assert sum(RangeTest(RATES, tuple(2.3 + losses)).suggestion is not None for losses in noise) <= 6
    fall = np.array([-0.2 / (1 + math.exp(-4 * (math.log10(rate) + 3))) for rate in RATES])
    for constant in (2.3, 20.0):
        found = RangeTest(RATES, tuple(constant + fall + noise[0])).suggestion
        assert found is not None
        assert 10**-3 < found < 10**-2


def test_the_smoothed_loss_is_the_corrected_moving_average():
    assert RangeTest((1e-3, 1e-2), (2.0, 4.0)).smoothed == pytest.approx((2.0, (0.9 * 0.1 * 2 + 0.1 * 4) / 0.19))


def test_groups_keep_their_ratios_and_the_scaling_with_the_batch():
    """The rate of a group is what a run with that ``model.optimizer.lr`` would have at its peak."""
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": lr} for lr in (1e-3, 2e-4)])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.5)
    watch = _Watch([1e-5, 1e-2])
    watch._scales = [base / 1e-3 * 2.0 for base in scheduler.base_lrs]
    trainer = SimpleNamespace(optimizers=[optimizer])
    watch._set_rates(trainer)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([2e-5, 4e-6])
    watch.losses = [1.0]
    watch._set_rates(trainer)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([2e-2, 4e-3])


def test_it_ends_after_its_rates_or_when_the_loss_diverges_and_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = recipe(**{"model.optimizer.layer_decay": 0.8, "trainer.accumulate_grad_batches": 2})
    seen = []
    monkeypatch.setattr(_Watch, "_set_rates", spied(_Watch._set_rates, seen))
    found = find_learning_rate(options, lowest=1e-4, highest=1e-3, updates=10)
    assert found.rates == pytest.approx(np.geomspace(1e-4, 1e-3, 10))
    assert len(found.losses) == 10
    assert all(map(math.isfinite, found.losses))
    # 64 images an update are the reference batch: the last group, the head, has the rate itself, the stem less.
    assert [max(rates) for rates in seen] == pytest.approx(found.rates)
    assert min(seen[0]) < 0.9 * max(seen[0])
    again = find_learning_rate(options, lowest=1e-4, highest=1e-3, updates=10)
    assert again == found
    diverged = find_learning_rate(options, lowest=1.0, highest=1e6, updates=30)
    assert len(diverged.rates) == len(diverged.losses) < 30
    assert list(tmp_path.iterdir()) == []


def spied(method, seen):
    def called(watch, trainer):
        method(watch, trainer)
        seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    return called


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, {"lowest": 1.0, "highest": 0.1}, "must be above 0 and below the highest"),
        ({}, {"lowest": 0.0}, "must be above 0"),
        ({}, {"updates": 3}, "3 updates are too few"),
        ({"trainer.strategy": "fsdp"}, {}, "cannot be combined with trainer.strategy=fsdp"),
        ({"trainer.devices": 2}, {}, "runs in one process"),
    ],
)
def test_what_cannot_work_is_refused(changes, arguments, message):
    with pytest.raises(ConfigError, match=message):
        find_learning_rate(recipe(**changes), **arguments)


def test_the_command_prints_a_suggestion_and_draws(tmp_path, monkeypatch, capsys):
    losses = tuple(2 - 1 / (1 + math.exp(-4 * (math.log10(rate) + 3))) for rate in RATES)
    monkeypatch.setattr("focalnet.training.lr_finder.find_learning_rate", lambda *_, **__: RangeTest(RATES, losses))
    assert main(["lr", DIGITS, "--out", str(tmp_path / "lr.png")]) == 0
    assert "suggested: --model.optimizer.lr 0.0" in capsys.readouterr().out
    assert (tmp_path / "lr.png").stat().st_size > 5000
    assert main(["lr", DIGITS, "--out", str(tmp_path / "lr.txt")]) == 2
    assert "must end in .png, .svg or .pdf" in capsys.readouterr().err
