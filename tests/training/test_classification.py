"""What a training run computes."""

import csv
import json

import pytest
import torch
import torch.nn.functional as F
from timm.data import Mixup

import focalnet
from focalnet import weights
from focalnet.cli.train import fit, validate
from focalnet.errors import ConfigError
from focalnet.kernels import processor
from focalnet.models import Classifier
from focalnet.training import ClassificationTask, MixConfig
from tests.training.toy import MIXED, TOY, weights_of

DIGITS = "classification/digits"
VALIDATION = ("data.batch_size", "trainer.limit_val_batches", "trainer.accelerator")
#: Nothing random: for runs that must agree although they draw differently.
PLAIN = {**TOY, "model.options": {**TOY["model.options"], "drop_path_rate": 0.0}, "model.ema_decay": None}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "digits"
    assert fit(DIGITS, output=folder, **MIXED) == folder
    return folder


def test_a_run_leaves_everything_behind(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.yaml", "versions.json", "last.ckpt", "previous.ckpt", "metrics.csv", "tensorboard",
        "model.safetensors", "report.html", "results.json",
    }  # fmt: skip
    assert list((finished / "tensorboard").glob("events.*"))


def test_metrics_have_a_row_for_each_epoch(finished):
    rows = list(csv.DictReader((finished / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [row["updates"] for row in rows] == ["3", "6"]
    assert all(float(row["train_loss"]) > 0 and 0 <= float(row["top1"]) <= float(row["top5"]) <= 100 for row in rows)
    assert float(rows[0]["learning_rate"]) != float(rows[1]["learning_rate"])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_in_bfloat16_that_the_processor_emulates_says_so(tmp_path, precision, monkeypatch, caplog):
    monkeypatch.setattr(processor, "computes_bfloat16", lambda: False)
    fit(DIGITS, output=tmp_path / "run", **{**TOY, "trainer.max_epochs": 1, "trainer.precision": precision})
    assert any("--trainer.precision 32-true" in line for line in caplog.messages) == (precision == "bf16-mixed")


def test_epochs_without_validation_have_no_accuracy(tmp_path):
    run = fit(DIGITS, output=tmp_path / "run", **{**TOY, "trainer.check_val_every_n_epoch": 2})
    first, second = csv.DictReader((run / "metrics.csv").read_text().splitlines())
    assert (first["top1"], first["val_loss"]) == ("", "")
    assert second["top1"] != ""


def test_the_weights_load_with_their_card_and_measure_the_same_again(finished):
    results = json.loads((finished / "results.json").read_text())
    model = focalnet.load(finished / "model.safetensors")
    assert model.card.name == "focalnet_nano_patch1.digits"
    assert model.card.class_names == tuple("0123456789")
    assert model.card.preprocessing.image_size == 8
    assert model.card.metrics == {"top1": round(results["top1"], 2)}

    measured = validate(DIGITS, finished / "model.safetensors", **{n: TOY[n] for n in VALIDATION})
    assert measured["images"] == results["images"]
    assert measured["top1"] == pytest.approx(results["top1"])
    assert measured["top5"] == pytest.approx(results["top5"])


def test_the_same_run_gives_the_same_weights_and_another_seed_others(finished, tmp_path):
    again = weights_of(fit(DIGITS, output=tmp_path / "again", **MIXED))
    other = weights_of(fit(DIGITS, output=tmp_path / "other", **MIXED, seed_everything=1))
    first = weights_of(finished)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    large = {**PLAIN, "data.batch_size": 64, "trainer.limit_train_batches": 4}
    halves = {**PLAIN, "trainer.accumulate_grad_batches": 2, "trainer.limit_train_batches": 8}
    runs = [weights_of(fit(DIGITS, output=tmp_path / str(i), **o)) for i, o in enumerate((large, halves))]
    for name, value in runs[0].items():
        torch.testing.assert_close(value, runs[1][name], atol=1e-4, rtol=1e-3, msg=name)


def test_the_moving_average_is_what_is_kept(tmp_path):
    plain = fit(DIGITS, output=tmp_path / "plain", **PLAIN)
    averaged = fit(DIGITS, output=tmp_path / "averaged", **{**PLAIN, "model.ema_decay": 0.5})
    state = torch.load(averaged / "last.ckpt", weights_only=True)["state_dict"]
    for name, kept in weights_of(averaged).items():
        assert torch.equal(kept, state[f"average.module.{name}"])
        assert torch.equal(weights_of(plain)[name], state[f"network.{name}"])  # averaging does not change training
    assert not torch.equal(weights_of(averaged)["head.weight"], weights_of(plain)["head.weight"])


def test_frozen_stages_keep_their_weights(finished, tmp_path):
    start = finished / "model.safetensors"
    options = {**PLAIN, "model.architecture": None, "model.weights": str(start), "model.options": {}}
    run = fit(DIGITS, output=tmp_path / "run", **options, **{"model.freeze_stages": 1})
    assert focalnet.load(run / "model.safetensors").card.source == "finetuned from focalnet_nano_patch1.digits"
    before, after = weights_of(finished), weights_of(run)
    frozen = {name for name in before if name.startswith(("patch_embed.", "layers.0."))}
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not any(torch.equal(before[name], after[name]) for name in ("layers.1.blocks.0.mlp.fc1.weight", "head.bias"))


@pytest.mark.parametrize(
    "option", [{"trainer.precision": "bf16-mixed"}, {"model.grad_checkpointing": True}], ids=["bf16", "checkpointing"]
)
def test_options_that_change_the_computation_only(tmp_path, option):
    plain = weights_of(fit(DIGITS, output=tmp_path / "plain", **PLAIN))
    run = weights_of(fit(DIGITS, output=tmp_path / "run", **PLAIN, **option))
    same = {name: torch.allclose(plain[name], run[name], atol=2e-2) for name in plain}
    assert all(same.values())


def test_a_compiled_network_trains_to_the_same_weights(tmp_path, monkeypatch):
    # Without code generation, which takes a minute: what could break here is the wrapping, not the compiler.
    monkeypatch.setattr(Classifier, "compile", lambda self: torch.nn.Module.compile(self, backend="eager"))
    plain = weights_of(fit(DIGITS, output=tmp_path / "plain", **PLAIN))
    compiled = weights_of(fit(DIGITS, output=tmp_path / "compiled", **PLAIN, **{"model.compile": True}))
    for name, value in plain.items():
        torch.testing.assert_close(value, compiled[name], atol=1e-3, rtol=1e-2, msg=name)


def test_smoothing_mixed_labels_in_the_loss_is_smoothing_them_when_mixed():
    logits, labels = torch.randn(8, 10), torch.arange(8)
    images = torch.rand(8, 3, 8, 8)
    losses = []
    for in_mixer, in_loss in ((0.1, 0.0), (0.0, 0.1)):
        torch.manual_seed(0)
        mixer = Mixup(mixup_alpha=0.8, num_classes=10, label_smoothing=in_mixer)
        mixer._params_per_batch = lambda: (0.3, False)
        _, mixed = mixer(images.clone(), labels)
        losses.append(F.cross_entropy(logits, mixed, label_smoothing=in_loss))
    torch.testing.assert_close(*losses)


def test_mixing_is_off_by_default_and_on_with_either():
    assert MixConfig().build(10) is None
    assert MixConfig(mixup=0.2).build(10) is not None
    assert MixConfig(cutmix=1.0).build(10) is not None


@pytest.mark.parametrize("given", [{}, {"architecture": "focalnet_nano", "weights": "focalnet_nano.cifar10"}])
def test_architecture_and_weights_exclude_each_other(given):
    with pytest.raises(ConfigError, match="give one of"):
        ClassificationTask(**given)


def test_mixing_needs_even_batches(tmp_path):
    with pytest.raises(ConfigError, match="even"):
        fit(DIGITS, output=tmp_path / "run", **{**MIXED, "data.batch_size": 31})


def test_the_last_epochs_are_not_mixed(tmp_path):
    odd = {**MIXED, "data.batch_size": 31, "trainer.max_epochs": 2}
    fit(DIGITS, output=tmp_path / "clean", **odd, **{"model.mix.clean_epochs": 2})
    with pytest.raises(ConfigError, match="even"):
        fit(DIGITS, output=tmp_path / "mixed", **odd, **{"model.mix.clean_epochs": 1})


def test_weights_with_other_classes_than_the_data_are_refused(tmp_path):
    path = weights.save(focalnet.create_model("focalnet_nano_patch1", num_classes=7), tmp_path / "7.safetensors")
    with pytest.raises(ConfigError, match=r"7 classes.*10"):
        validate(DIGITS, path)
