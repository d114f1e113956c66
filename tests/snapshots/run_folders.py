"""The stored runs: made by an earlier version, loaded and resumed by today's.

``earlier/NAME/`` has the recipe, and what that version left after the first of two epochs: ``config.yaml``,
``metrics.csv`` and ``last.ckpt`` (packed as ``last.ckpt.xz``). ``model.safetensors`` is what it had after the second,
and ``expected/`` what ``focalnet predict`` wrote with these weights. Where they come from: ``earlier/README.md``.
"""

from __future__ import annotations

import contextlib
import json
import lzma
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import yaml
from PIL import Image

import focalnet
from tests.snapshots import topics
from tests.snapshots.compare import FOLDER, keys, mark
from tests.snapshots.tiny_data import write_data

STORED = FOLDER / "earlier"
MODEL = "run/model.safetensors"


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Makes it the working directory, because the stored options have relative paths."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def recipe(run: str) -> str:
    return str(STORED / run / "recipe.yaml")


# --- Making them ---------------------------------------------------------------------------------


def make(run: str, folder: Path) -> None:
    """Trains with the version that is imported, and stores what it leaves. ``folder`` is in its checkpoint."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_data(run, folder)
    target = STORED / run
    with inside(folder):
        step = pl.LightningModule.optimizer_step

        def interrupted(self: Any, *args: Any, **kwargs: Any) -> None:
            if self.current_epoch == 1:
                raise KeyboardInterrupt
            step(self, *args, **kwargs)

        pl.LightningModule.optimizer_step = interrupted
        try:
            focalnet.fit(recipe(run), output="run")
        except KeyboardInterrupt:
            pass
        finally:
            pl.LightningModule.optimizer_step = step
        for name in ("config.yaml", "metrics.csv"):
            shutil.copy(f"run/{name}", target)
        (target / "last.ckpt.xz").write_bytes(lzma.compress(Path("run/last.ckpt").read_bytes(), preset=9))
        focalnet.fit(recipe(run), output="run")
        shutil.copy(MODEL, target)
        predict("expected")
        shutil.rmtree(target / "expected", ignore_errors=True)
        (target / "expected").mkdir()
        for path in sorted(Path("expected").iterdir()):
            if not path.name.endswith("-prediction.png"):  # a drawing
                shutil.copy(path, target / "expected")
        maps = json.dumps(feature_maps(), indent=1)
        (target / "expected" / "feature_maps.json").write_text(maps + "\n")


# --- Using them ----------------------------------------------------------------------------------


def lay_out(run: str, folder: Path) -> None:
    """Writes data and the interrupted run into an empty folder."""
    write_data(run, folder)
    (folder / "run").mkdir()
    shutil.copy(STORED / run / "metrics.csv", folder / "run")
    (folder / "run/last.ckpt").write_bytes(lzma.decompress((STORED / run / "last.ckpt.xz").read_bytes()))
    (folder / "run/config.yaml").write_text(config(run))


def config(run: str) -> str:
    """The stored options; those of the trainer that are Lightning's own are of the installed version."""
    stored = yaml.safe_load((STORED / run / "config.yaml").read_text())
    now = yaml.safe_load(topics.output("fit", recipe(run), "--print_config"))
    ours = topics.our_trainer_options()
    stored["trainer"] = {
        name: stored["trainer"].get(name, value) if f"trainer.{name}" in ours else value
        for name, value in now["trainer"].items()
    }
    return yaml.safe_dump(stored, sort_keys=False)


def predict(out: str, model: str = MODEL) -> None:
    """Writes the predictions of ``focalnet predict``."""
    topics.output("predict", "images", "--model", model, "--out", out, "--min-score", "0", "--device", "cpu")


def feature_maps(model: str = MODEL) -> dict[str, list[float]]:
    """A fingerprint of each feature map of the backbone, for a fixed input."""
    network = focalnet.load(model, features_only=True)
    images = torch.sin(torch.arange(3 * 48 * 64, dtype=torch.float32)).view(1, 3, 48, 64)
    with torch.no_grad():
        return {name: mark(tensor) for name, tensor in network(images).items()}


class Groups:
    """The names in each group of parameters that the optimizer of a run has."""

    def __init__(self) -> None:
        self.entries: dict[str, Any] = {}

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        step = pl.LightningModule.optimizer_step

        def watching(task: Any, epoch: int, batch_idx: int, optimizer: Any, *args: Any, **kwargs: Any) -> None:
            names = {id(parameter): name for name, parameter in task.named_parameters()}
            for number, group in enumerate(optimizer.param_groups):
                has = {key: group[key] for key in ("weight_decay", "lr_scale") if key in group}
                self.entries[f"group {number}"] = [has, [names[id(parameter)] for parameter in group["params"]]]
            step(task, epoch, batch_idx, optimizer, *args, **kwargs)

        pl.LightningModule.optimizer_step = watching
        try:
            yield
        finally:
            pl.LightningModule.optimizer_step = step


def facts(run: str, groups: Groups) -> dict[str, Any]:
    """Files of the finished run in the working directory, and the names in them."""
    folder = Path("run")
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    topics.output("validate", recipe(run), "--weights", MODEL, "--out", "validated.json")
    predict("out")
    found: dict[str, Any] = {
        "files": sorted({re.sub(r"tfevents.*", "tfevents", str(p.relative_to(folder))) for p in folder.rglob("*.*")}),
        "metrics.csv": (folder / "metrics.csv").read_text().splitlines()[0].split(","),
        "config.yaml": list(yaml.safe_load((folder / "config.yaml").read_text())),
        "results.json": keys(json.loads((folder / "results.json").read_text())),
        "versions.json": keys(json.loads((folder / "versions.json").read_text())),
        "report.html": re.findall(r"<h2[^>]*>(.*?)</h2>", (folder / "report.html").read_text()),
        "last.ckpt: callbacks": sorted(name.partition("{")[0] for name in checkpoint["callbacks"]),
        "last.ckpt: state_dict": list(checkpoint["state_dict"]),
        "tensorboard": _tags(folder / "tensorboard"),
        "predict": sorted(path.name for path in Path("out").iterdir()),
        "validate --out": keys(json.loads(Path("validated.json").read_text())),
    }
    for path in sorted(Path("out").glob("*.json")):
        found[f"predict: {path.name}"] = keys(json.loads(path.read_text()))
    found |= {f"model.safetensors: {name}": value for name, value in topics.header(Path(MODEL)).items()}
    found = {name: value for name, value in found.items() if ".metrics." not in name}  # measured times
    return found | {f"optimizer: {name}": value for name, value in groups.entries.items()}


def _tags(folder: Path) -> list[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return sorted(events.Tags()["scalars"])


# --- Comparing -----------------------------------------------------------------------------------


def prediction_differences(expected: Path, now: Path) -> list[str]:
    """Differences of predictions: names must be equal, numbers within a tolerance, maps in nearly all pixels."""
    found = []
    for path in sorted(expected.iterdir()):
        other = now / path.name
        if path.name == "feature_maps.json":
            continue
        if not other.is_file():
            found.append(f"{path.name} is not written any more")
        elif path.suffix == ".png":
            before, after = (np.asarray(Image.open(p)) for p in (path, other))
            if before.shape != after.shape or (before != after).mean() > 0.02:
                found.append(f"{path.name}: shape {before.shape}, now {after.shape}, or over 2 % of pixels differ")
        else:
            found += _entries(path.name, json.loads(path.read_text()), json.loads(other.read_text()))
    return found


def _entries(name: str, stored: Any, now: Any) -> list[str]:
    before, after = keys(stored), keys(now)
    if before != after:
        return [f"{name}: keys {before}, now {after}"]
    one, other = (_values(content) for content in (stored, now))
    found = []
    for key in one.keys() | other.keys():
        a, b = (np.array(values.get(key, [])) for values in (one, other))
        tolerance = 0.02 if key in ("share", "area") else 2e-3  # counted pixels; computed numbers
        if a.shape != b.shape or not np.allclose(a, b, rtol=tolerance, atol=0.02 if key == "box" else 1e-4):
            found.append(f"{name}: {key} was {a.tolist()}, is {b.tolist()}")
    return sorted(found)


def _values(content: Any) -> dict[str, list[float]]:
    """All numbers of any object by name, in ascending order, since near ties may swap."""
    found: dict[str, list[float]] = {}

    def visit(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for inner, one in value.items():
                visit(one, inner)
        elif isinstance(value, list):
            for one in value:
                visit(one, key)
        elif isinstance(value, int | float):
            found.setdefault(key, []).append(float(value))

    visit(content, "")
    return {key: sorted(values) for key, values in found.items()}


def weight_differences(
    start: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], now: dict[str, torch.Tensor]
) -> list[str]:
    """Tensors that training changed differently than expected.

    Rounding decides where parameters with hardly any gradient go, since Adam's steps are of one size: one tensor may
    miss half of its way and a hundredth of that of all, all together a twentieth.

    Args:
        start: before the resumed epoch.
        expected: after it.
        now: what was reached today.
    """
    found = [f"{key} is gone" for key in expected if key not in now]
    found += [f"{key} is new" for key in now if key not in expected]
    if found:
        return found
    ways = {key: (tensor - start[key]).double().norm().item() for key, tensor in expected.items()}
    missed = {key: (tensor - now[key]).double().norm().item() for key, tensor in expected.items()}
    far, off = (sum(value**2 for value in values.values()) ** 0.5 for values in (ways, missed))
    for key, way in ways.items():
        if missed[key] > 0.5 * way + 0.01 * far:
            found.append(f"{key}: trained {way:.3g} far, and {missed[key]:.3g} from where it should be")
    return found + ([f"all weights: trained {far:.3g} far, and {off:.3g} off"] if off > 0.05 * far else [])


def trained_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The weights of a ``last.ckpt`` that would be saved: the average, if there is one."""
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    averaged = any(key.startswith("average.") for key in state)
    prefix = "average.module." if averaged else "network."
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())
