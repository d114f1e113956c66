"""What commands do not import, so that they start at once; and what a person types to find their way."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from focalnet import list_models
from focalnet.cli import models as command
from focalnet.cli.main import main
from focalnet.models import published
from focalnet.ops import modes
from tests.inference.small import noise

HEAVY = (
    "torch torch._dynamo torch.utils.flop_counter torchvision triton timm lightning transformers sympy matplotlib "
    "numpy PIL scipy datasets huggingface_hub.file_download"
).split()
SCRIPT = """
import contextlib, io, json, sys
from pathlib import Path
image, *heavy = sys.argv[1:]
found = {}
def note(step):
    found[step] = [name for name in heavy if name in sys.modules]
import focalnet
note("import focalnet")
from focalnet.cli.main import main
with contextlib.redirect_stdout(io.StringIO()):
    assert main(["--help"]) == 0
    note("focalnet --help")
    assert main(["models"]) == 0
    note("focalnet models")
    assert main(["predict", image]) == 0
    note("focalnet predict")
print(json.dumps(found))
"""

NETWORKS = """
import json, sys
import PIL.Image
import torch
import focalnet
from focalnet.ops import modes
from focalnet.card import ModelCard, Preprocessing
small = {"embed_dim": 16, "depths": (1, 1, 1, 1)}
card = ModelCard(name="", class_names=("a", "b"), preprocessing=Preprocessing(image_size=64, max_size=96))
for name in ("upernet", "mask2former", "dino", "sparse_rcnn"):
    model = focalnet.create_model(f"{name}_focalnet_tiny_srf", num_classes=2, **small).eval()
    model.card = card
    focalnet.Predictor(model)(PIL.Image.new("RGB", (90, 70)))
found = [name for name in sys.argv[1:] if name in sys.modules]
with modes.on_meta():  # as files are loaded
    values = [torch.nn.init.normal_(torch.empty(2)), torch.nn.init.trunc_normal_(torch.empty(2))]
    assert model.config.build().device.type == values[0].device.type == values[1].device.type == "meta"
print(json.dumps(found + ["torch._dynamo"] * ("torch._dynamo" in sys.modules)))
"""


def test_commands_do_not_import_what_they_do_not_need(tmp_path: Path) -> None:
    noise().save(tmp_path / "image.png")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "image.png"), *HEAVY]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["import focalnet"] == found["focalnet --help"] == []
    assert set(found["focalnet models"]) <= {"huggingface_hub.file_download"}
    assert set(found["focalnet predict"]) <= {"torch", "numpy", "PIL", "huggingface_hub.file_download"}


def test_networks_without_suppression_predict_without_torchvision() -> None:
    """``import torchvision`` imports PyTorch's compiler; ``nms``, which R-CNN and ATSS need, cannot be had without."""
    done = subprocess.run([sys.executable, "-c", NETWORKS, *HEAVY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) <= {"torch", "numpy", "PIL", "scipy", "huggingface_hub.file_download"}


def test_compilers_take_the_mark_of_a_constant() -> None:
    """PyTorch's own function sets this attribute, and nothing else."""

    def ours() -> int:
        return 1

    def theirs() -> int:
        return 1

    assert vars(modes.constant(ours)) == vars(torch.compiler.assume_constant_result(theirs))


def test_the_listing_is_that_of_the_networks() -> None:
    """If a network was added or changed on purpose: ``python -m focalnet.cli.models`` writes the file."""
    assert command.measured() == published.networks()
    assert list(published.networks()) == list_models()


@pytest.mark.parametrize(
    ("options", "task"),
    [((), None), (("--task", "semantic"), "semantic"), (("--task", "panoptic", "--with-weights"), "panoptic")],
)
def test_models_are_filtered(options: tuple[str, ...], task: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["models", *options, "--json"])
    captured = capsys.readouterr()
    if "--with-weights" in options:  # no weights of panoptic segmentation are served any more
        assert (code, captured.out) == (2, "")
        assert 'no model is left by these options; "focalnet models" lists all' in captured.err
        return
    listing = json.loads(captured.out)
    names = [n for n, network in published.networks().items() if task is None or task in network.tasks]
    assert [model["name"] for model in listing] == names


def test_weights_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "nano", "--local"]) == 0
    header, below, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["architecture", "parameters", "MACs", "image"]
    assert below.split() == ["weights", "metrics", "license", "file"]
    assert any(line.startswith("    focalnet_nano.cifar10 ") for line in lines)
    assert all(line.endswith("in this package") for line in lines if line.startswith("    "))


@pytest.mark.parametrize("name", ["predict", "models", "fit", "validate", "check-data", "doctor"])
def test_every_command_has_short_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "-h"]) == 0
    short = capsys.readouterr().out
    assert main([name, "--help"]) == 0
    assert short == capsys.readouterr().out
    assert short.startswith(f"Usage: focalnet {name} ")


def test_the_help_of_a_recipe_lists_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lightning")
    assert main(["fit", "classification/digits", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "Options of classification/digits, with their values:" in printed
    for option in ("--model.optimizer.lr 0.003", "--trainer.max_epochs 30", '--data.format "digits"'):
        assert f"  {option}" in printed
    assert "--model.seed" not in printed
    assert "--trainer {" not in printed
    assert '--trainer.accelerator "auto"' in printed
    assert "--trainer.logger null" in printed
    assert ":class:" not in printed
    assert "Default: 1.0" not in printed
    assert main(["fit", "classification/digitz", "--help"]) == 2
    assert 'no recipe "classification/digitz"' in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["detection/finetune", "segmentation/finetune", "classification/multilabel"])
def test_the_help_of_a_recipe_needs_no_data(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lightning")
    assert main(["fit", recipe, "--help"]) == 0
    assert '--data.root "FOLDER"' in capsys.readouterr().out
    assert main(["fit", recipe, "--print_config"]) == 2
    *_, last = capsys.readouterr().err.splitlines()  # after what is told of preprocessing
    assert last == "error: option data.root has no default: give it as --data.root FOLDER"


def test_a_shell_completes_commands_recipes_and_weights() -> None:
    """As bash asks: the line so far, and the number of its word."""
    for line, expected in (("focalnet mod", "models"), ("focalnet fit classification/dig", "classification/digits")):
        environment = {
            **os.environ,
            "_FOCALNET_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split()) - 1),
        }
        start = [sys.executable, "-m", "focalnet"]
        done = subprocess.run(start, env=environment, capture_output=True, text=True, check=False)
        assert expected in done.stdout.split(), done.stderr


def test_a_listed_network_is_plain_data() -> None:
    network = published.networks()["dino_focalnet_tiny_srf"]
    assert dataclasses.asdict(network)["tasks"] == ("detection",)
    assert network.macs is None
