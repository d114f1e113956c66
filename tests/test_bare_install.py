"""What works without any extra, and what is said of the rest: the packages of the extras cannot be imported here."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image

BLOCK = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def find_others(name, *rest):
    return None if name.partition(".")[0] in {modules!r} else find(name, *rest)
PathFinder.find_spec = staticmethod(find_others)
"""
USES = """
import torch, focalnet
for name, size in (("focalnet_nano", 32), ("mask_rcnn_focalnet_nano", 64), ("upernet_focalnet_nano", 64),
                   ("mask2former_focalnet_nano", 64)):
    model = focalnet.create_model(name, num_classes=3).eval()
    sizes = [(size, size)] if name.startswith("mask_rcnn") else None
    with torch.inference_mode():
        model(torch.zeros(1, 3, size, size), *([sizes] if sizes else []))
focalnet.optimize(focalnet.load("focalnet_nano.cifar10"))
"""


def absent() -> list[str]:
    """Modules of the packages that only extras install."""
    requirements = [Requirement(text) for text in requires("focalnet") or ()]
    optional = {r.name for r in requirements if "extra" in str(r.marker)}
    needed = {r.name for r in requirements if "extra" not in str(r.marker)}
    return sorted(set().union(*map(modules, optional - needed - {"focalnet", "pytest"})))


def modules(package: str) -> set[str]:
    """What can be imported of a package; ``packages_distributions`` of Python 3.10 knows not all of them."""
    try:
        files = distribution(package).files or ()
    except PackageNotFoundError:
        return set()
    names = {path.parts[0].removesuffix(".py") for path in files if path.suffix == ".py"}
    return {name for name in names if name.isidentifier()}


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = BLOCK.format(modules=set(absent())) + code
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return python("from focalnet.cli.main import main; sys.exit(main(sys.argv[1:]))", *arguments)


def test_the_packages_are_those_of_the_extras():
    assert {"lightning", "jsonargparse", "sklearn", "datasets", "pycocotools", "transformers", "scipy"} <= set(absent())
    assert not {"torch", "torchvision", "timm", "safetensors", "matplotlib", "numpy", "typer", "yaml"} & set(absent())


def test_networks_are_built_and_run():
    done = python(USES)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("what", ["predict", "explain", "convert", "models", "doctor", "recipes"])
def test_commands_that_need_no_extra(what, tmp_path):
    Image.new("RGB", (32, 32), "green").save(tmp_path / "a.png")
    weights = str(Path(__file__).parents[1] / "src/focalnet/weights/embedded/focalnet_nano.cifar10.safetensors")
    arguments = {
        "predict": [str(tmp_path / "a.png"), "--out", str(tmp_path / "out")],
        "explain": [str(tmp_path / "a.png"), "--out", str(tmp_path / "out")],
        "convert": [weights, str(tmp_path / "theirs.pth"), "--to", "microsoft"],
        "models": ["focalnet_nano*"],
    }
    done = command(what, *arguments.get(what, []))
    assert done.returncode == 0, done.stderr


def test_training_names_the_extra_it_needs(tmp_path):
    done = command("fit", "classification/digits", "--output", str(tmp_path / "run"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert 'pip install "focalnet[train]"' in done.stderr
    assert not (tmp_path / "run").exists()
