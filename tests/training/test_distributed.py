"""Several processes compute what one does."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from focalnet import weights
from focalnet.cli.train import fit, validate
from focalnet.errors import ConfigError
from focalnet.training import finishing
from tests.data.coco import write_coco
from tests.data.panoptic import write_panoptic
from tests.data.semantic import write_semantic
from tests.training import two_processes
from tests.training.toy import TOY, weights_of

DIGITS = "classification/digits"
#: Drop path and mixing are drawn in each process for its own images; everything else is the same.
OPTIONS = {**TOY, "model.options": {**TOY["model.options"], "drop_path_rate": 0.0}, "model.ema_decay": None}

#: Runs on the digits and what each needs: averaged weights; weight decay and clipping, which need more than a shard.
RUNS = {
    "ddp": {**OPTIONS, "model.ema_decay": 0.5},
    "fsdp": {**OPTIONS, "model.optimizer.weight_decay": 0.5, "trainer.gradient_clip_val": 0.1},
}
if torch.__version__.startswith("2.10."):
    del RUNS["fsdp"]  # torch 2.10 crashes when it gathers shards on a CPU, where only this test has them

#: A run whose rate does not depend on where it is stopped: within its second epoch, of three updates as the first.
STEADY = {**OPTIONS, "model.schedule": {"kind": "step", "decay_rate": 1.0, "warmup_epochs": 0}}
STOP = {"trainer.max_steps": 4}


def history(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def in_two(*program: str) -> str:
    """Runs a program under torchrun and returns what it showed."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*torchrun, *program], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return run.stderr


def arguments(folder: Path, options: dict[str, Any], strategy: str = "ddp") -> list[str]:
    options = {**options, "trainer.devices": 2, "trainer.strategy": strategy}
    given = [f"--{name}={'null' if value is None else value}" for name, value in options.items()]
    return ["fit", DIGITS, "--output", str(folder), *given]


def assert_the_same_run(one: Path, other: Path, *figures: str) -> None:
    """But for the order in which numbers were added."""
    assert_same_tensors(weights_of(one), weights_of(other))
    for row, its in zip(history(one), history(other), strict=True):
        for name in ("train_loss", "learning_rate", *figures):
            assert float(row[name]) == pytest.approx(float(its[name]), rel=1e-5), name


def assert_same_tensors(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> None:
    """But for rounding: that of the largest numbers of a tensor is what the smallest are left with."""
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        atol = max(1e-5, 4e-6 * float(value.abs().max()))
        torch.testing.assert_close(found[name], value, atol=atol, rtol=1e-4, msg=name)


def assert_same_figures(found: dict[str, Any], expected: dict[str, Any], *names: str) -> None:
    assert {name: found[name] for name in names} == pytest.approx({name: expected[name] for name in names}, abs=1e-4)


@pytest.mark.parametrize(("option", "value"), [("model.ema_decay", 0.5), ("model.optimizer.name", "muon")])
def test_what_needs_whole_weights_is_not_sharded(tmp_path, option, value):
    with pytest.raises(ConfigError, match=option):
        fit(DIGITS, output=tmp_path, **{**OPTIONS, option: value, "trainer.strategy": "fsdp"})


# --- one launch, of which each test looks at a part


@pytest.fixture(scope="module", autouse=True)
def no_reports():
    """Drawing takes longer than all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finishing, "write_report", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Path:
    """What two processes have done by ``two_processes.py``, in a folder; one process has trained in the folder beside.

    There are 4 images to train on, and 5 to validate, which two processes cannot share evenly.
    """
    folder = tmp_path_factory.mktemp("both")
    for name, write in (("boxes", write_coco), ("maps", write_semantic), ("segments", write_panoptic)):
        write(folder / name, images=5)
        (folder / f"{name}.yaml").write_text(json.dumps(two_processes.RECIPES[name]))
    weights.save(two_processes.panoptic_network(), folder / "segments.safetensors")
    fit(DIGITS, output=folder / "one_then_two", **STEADY, **STOP)
    commands = [arguments(folder / "two" / strategy, options, strategy) for strategy, options in RUNS.items()]
    commands += [arguments(folder / "two_then_one", {**STEADY, **STOP}), arguments(folder / "one_then_two", STEADY)]
    (folder / "commands.json").write_text(json.dumps(commands))
    (folder / "shown").write_text(in_two("-m", "tests.training.two_processes", str(folder)))
    for name in ("boxes", "maps"):
        fit(folder / f"{name}.yaml", output=folder / "one" / name, **{"data.root": str(folder / name)})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("strategy", list(RUNS))
def test_two_processes_reach_the_loss_of_one(both, strategy):
    one = fit(DIGITS, output=both / "one" / strategy, **RUNS[strategy])
    assert_the_same_run(one, both / "two" / strategy, "val_loss", "top1")


@pytest.mark.slow
def test_one_process_speaks(both):
    lines = (both / "shown").read_text().splitlines()
    assert sum("epoch 2/2" in line for line in lines) == len(RUNS) + 1  # and the one that goes on in two


@pytest.mark.slow
def test_a_run_goes_on_within_an_epoch_with_another_number_of_processes(both):
    """The same images in the same order: the weights are those of a run that was not stopped."""
    reference = fit(DIGITS, output=both / "reference", **STEADY)
    stopped = json.loads((both / "two_then_one" / "results.json").read_text())
    assert (stopped["ended"], stopped["kept"]["updates"]) == ("trainer.max_steps", 3)  # of the only validation
    fit(DIGITS, output=both / "two_then_one", **STEADY)
    for folder in (both / "two_then_one", both / "one_then_two"):
        assert json.loads((folder / "results.json").read_text())["ended"] == "complete"
        assert_the_same_run(reference, folder, "val_loss", "top1")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "figure"), [("boxes", "box_ap"), ("maps", "miou")])
def test_two_processes_train_and_measure_what_one_does(both, name, figure):
    """ATSS, whose losses are divided by what both have; UPerNet, whose batch norms see the images of both."""
    two = both / "two" / name
    assert_the_same_run(both / "one" / name, two)
    found = json.loads((two / "results.json").read_text())
    again = validate(both / f"{name}.yaml", two / "model.safetensors", **{"data.root": str(both / name)})
    assert found["images"] == again["images"] == 5
    assert found[figure] > 0
    assert_same_figures(found, again, figure)


@pytest.mark.slow
def test_batch_norms_have_the_statistics_of_the_whole_batch(both):
    """Each process has one image a step, which alone they would not even take: see ``UPerNet.training_outputs``."""
    one, two = (
        {name: value for name, value in weights_of(both / processes / "maps").items() if "running_" in name}
        for processes in ("one", "two")
    )
    assert len(one) == 22
    assert not any(torch.equal(value, torch.full_like(value, float("var" in name))) for name, value in one.items())
    assert_same_tensors(one, two)


@pytest.mark.slow
def test_segments_of_both_processes_are_counted(both):
    alone = validate(both / "segments.yaml", both / "segments.safetensors", **{"data.root": str(both / "segments")})
    for rank in (0, 1):
        found = torch.load(both / f"{rank}.pt")["segments"]
        assert found["images"] == alone["images"] == 5
        assert_same_figures(found, alone, "rq", "pq_things", "sq_things", "pq_stuff", "sq_stuff")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["atss", "sparse_rcnn", "mask2former"])
def test_losses_are_divided_by_what_all_processes_have(both, method):
    """3 objects in one process, 1 in the other: the mean of the gradients is that of the whole batch."""
    whole = two_processes.gradients(two_processes.networks()[method], slice(None))
    for rank in (0, 1):
        assert_same_tensors(whole, torch.load(both / f"{rank}.pt")["gradients"][method])
