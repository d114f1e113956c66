"""``focalnet fit`` and ``focalnet validate`` as typed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

from focalnet.cli.main import main
from focalnet.cli.recipes import find_recipe, list_recipes
from focalnet.cli.train import fit, parse_overrides
from focalnet.errors import ConfigError, MissingDependency
from tests.training.toy import TOY

DIGITS = "classification/digits"
SMALL = [f"--{name}={value}" for name, value in TOY.items()]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line a wrong command ends in."""
    assert main(["fit", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_fit_and_validate(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", DIGITS, *SMALL]) == 0
    shown = capsys.readouterr().err
    assert "epoch 2/2" in shown
    assert "img/s" in shown
    assert "left" in shown
    run = tmp_path / "runs" / DIGITS
    assert "base64" in (run / "report.html").read_text()

    assert main(["fit", DIGITS, *SMALL]) == 0
    assert "is finished" in capsys.readouterr().err

    arguments = ["--weights", str(run / "model.safetensors"), "--out", "result.json", "--data.batch_size", "64"]
    assert main(["validate", DIGITS, *arguments]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines()] == ["top1", "top5", "images_per_s", "images"]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["images"] == 360
    assert result["recipe"] == DIGITS
    assert f"{result['top1']:.2f} %" in shown


def test_the_printed_options_are_a_recipe(tmp_path, capsys):
    assert main(["fit", DIGITS, "--model.optimizer.lr", "0.5", "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["model"]["optimizer"]["lr"] == 0.5
    (tmp_path / "own.yaml").write_text(printed)
    assert main(["fit", str(tmp_path / "own.yaml"), "--print_config"]) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_help_is_short_and_names_what_one_needs(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) < 30
    for needed in ("classification/finetune", "--data.root", "--print_config" if command == "fit" else "--weights"):
        assert needed in text


def test_recipes_lists_every_recipe_with_what_it_is_for(capsys):
    assert main(["recipes"]) == 0
    rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in rows] == list_recipes()
    for name, what in rows:
        assert find_recipe(name).read_text().startswith(f"# {what}.\n")


def test_recipes_by_pattern(capsys):
    assert main(["recipes", "cifar10"]) == 0
    assert capsys.readouterr().out.startswith("classification/cifar10_nano  FocalNet-nano (ours")
    assert main(["recipes", "classification/cifar100_nano"]) == 2
    assert 'did you mean "classification/cifar10_nano"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "answer"),
    [
        ("--model.lr=1", 'no option "model.lr"; did you mean "model.optimizer.lr"?'),
        ("--lr=1", 'did you mean "model.optimizer.lr"?'),
        ("--trainer.max_epoch=1", '"trainer.max_epochs"'),
        ("--model.seed=1", 'no option "model.seed"'),
        ("--nonsense=1", 'no option "nonsense"; --print_config shows all'),
        ("--trainer.max_epochs=many", 'option trainer.max_epochs cannot be "many": expected int'),
        ("--model.schedule.kind=cos", "cosine"),
        ("--data.augmentation.crop=none", "padded"),
        ("--data.batch_size=0", "batch_size"),
        ("--seed_everything=-1", "seed_everything"),
        ("--model.label_smoothing=1.5", "label_smoothing"),
        ("--model.ema_decay=2", "ema_decay"),
        ("--model.mix.cutmix=-1", "cutmix"),
        ("--trainer.max_epochs=0", "max_epochs"),
        ("--trainer=3", "trainer"),
        ("--model.options.drop_path=0.1", 'did you mean "drop_path_rate"'),
        ("--model.weights=x.safetensors", "give one of"),
        ("stray", 'unexpected "stray"'),
        ("--trainer.max_epochs", "needs a value"),
    ],
)
def test_wrong_options_end_in_one_line(option, answer, tmp_path, capsys):
    assert answer in refused(capsys, DIGITS, "--output", str(tmp_path / "run"), option)
    assert not (tmp_path / "run").exists()


def test_unknown_recipes_end_in_one_line(capsys):
    assert 'no recipe "digits"; did you mean "classification/digits"?' in refused(capsys, "digits")


def test_missing_data_ends_in_one_line(capsys, tmp_path):
    run = str(tmp_path / "run")
    assert "data.root" in refused(capsys, "classification/imagenet1k_tiny_srf", "--output", run)
    (tmp_path / "empty").mkdir()
    empty = ("classification/imagenet1k_tiny_srf", "--output", run, "--data.root", str(tmp_path / "empty"))
    assert str(tmp_path / "empty") in refused(capsys, *empty)
    assert not (tmp_path / "run").exists()


def test_fsdp_is_an_option(capsys):
    given = ["--trainer.strategy", "fsdp", "--trainer.devices", "8", "--trainer.accelerator", "gpu", "--print_config"]
    assert main(["fit", "classification/imagenet22k_large", "--data.root", ".", *given]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["strategy"] == "fsdp"


def test_without_the_extra_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning", None)
    with pytest.raises(MissingDependency, match=r'pip install "focalnet\[train\]"'):
        fit(DIGITS)


def test_overrides_are_names_and_values():
    given = ["--a.b", "1", "--c=2=3", "--d", "-1"]
    assert parse_overrides(given) == {"a.b": "1", "c": "2=3", "d": "-1"}
    with pytest.raises(ConfigError, match="needs a value"):
        parse_overrides(["--a", "--b", "1"])


def test_naming_the_commands_imports_nothing_heavy():
    code = "import sys, focalnet.cli.train; print(sorted({'torch', 'lightning', 'jsonargparse'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
