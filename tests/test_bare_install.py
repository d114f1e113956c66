"""What works without any extra, and what is said of the rest: the packages of the extras cannot be imported here."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

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
COMMANDS = """
import json
from focalnet.cli.main import main
for words in json.loads(sys.argv[1]):
    print("code", main(words))
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


def test_the_packages_are_those_of_the_extras():
    assert {"lightning", "jsonargparse", "sklearn", "datasets", "pycocotools", "transformers", "scipy"} <= set(absent())
    assert not {"torch", "torchvision", "timm", "safetensors", "matplotlib", "numpy", "typer", "yaml"} & set(absent())


def test_networks_are_built_and_run():
    done = python(USES)
    assert done.returncode == 0, done.stderr


def test_commands_that_need_no_extra(tmp_path):
    """In one process, one after the other: starting it takes longer than most of them."""
    Image.new("RGB", (32, 32), "green").save(tmp_path / "a.png")
    weights = str(Path(__file__).parents[1] / "src/focalnet/weights/embedded/focalnet_nano.cifar10.safetensors")
    commands = [
        ["predict", str(tmp_path / "a.png"), "--out", str(tmp_path / "out")],
        ["explain", str(tmp_path / "a.png"), "--out", str(tmp_path / "out")],
        ["convert", weights, str(tmp_path / "theirs.pth"), "--to", "microsoft"],
        ["models", "focalnet_nano*"],
        ["doctor"],
        ["recipes"],
        ["fit", "classification/digits", "--output", str(tmp_path / "run")],
    ]
    done = python(COMMANDS, json.dumps(commands))
    assert done.returncode == 0, done.stderr
    codes = [line for line in done.stdout.splitlines() if line.startswith("code ")]
    assert codes == ["code 0"] * 6 + ["code 2"], done.stderr
    assert 'pip install "focalnet[train]"' in done.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()
