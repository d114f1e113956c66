"""A scheduler asks a run to end, at any moment: it goes on later and ends with the same weights, to the bit."""

# ruff: noqa: E402 (what follows imports the extras)
from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

for package in ("lightning", "jsonargparse", "tensorboard", "pycocotools"):
    pytest.importorskip(package, reason="runs need the extra dense")

import yaml
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from focalnet.training import stopping
from focalnet.training.stopping import StopNow, StopRequest, slurm_requeue_signal
from tests.attacks import killing
from tests.attacks.runs import OPTIONS, train
from tests.data.coco import write_coco
from tests.training.toy import assert_same_weights
from tests.training.two_processes import RECIPES


@pytest.fixture(scope="module")
def processes():
    return killing.server()


@pytest.fixture(scope="module")
def whole(processes, tmp_path_factory) -> Path:
    """A run to which nothing happened."""
    root = tmp_path_factory.mktemp("whole") / "run"
    code, _ = killing.run(processes, train, root, OPTIONS, output=root.with_name("output"))
    assert code == 0
    return root


def rows(root: Path) -> list[str]:
    """Of metrics.csv, without the columns that are times."""
    return [line.rsplit(",", 2)[0] for line in (root / "metrics.csv").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "event", "kept"),
    [
        ("0.0", "SIGTERM", "the run up to batch 2 of epoch 1"),
        ("1.2", "SIGUSR1", "the run up to batch 4 of epoch 2"),  # gradients are pending after batch 3
        ("1.5", "SIGHUP", "the run up to batch 6 of epoch 2"),  # then comes validation
        ("validation 1", "SIGUSR1", "the run up to batch 6 of epoch 2"),
        ("2.1", "everyone", "the run up to batch 2 of epoch 3"),
        ("end", "SIGHUP", "the last complete epoch"),  # all is trained, and being measured
    ],
)
def test_a_run_goes_on_from_within_an_epoch(processes, whole, place, event, kept, tmp_path, attacks):
    root, output = tmp_path / "run", tmp_path / "output"
    options = {**OPTIONS, "data.num_workers": 1 if event == "everyone" else 0}
    action = in_a_group if event == "everyone" else train
    code, _ = killing.run(processes, action, root, options, place, event, output=output)
    text = output.read_text()
    assert code == 2, text
    [line] = [line for line in text.splitlines() if line.startswith("error: ")]
    name = "SIGTERM" if event == "everyone" else event
    assert line == f"error: stopped by {name}; {root}/last.ckpt keeps {kept}, and the same command goes on from it"
    code, _ = killing.run(processes, train, root, options, output=output)
    assert code == 0, output.read_text()
    assert_same_weights(whole, root)
    assert rows(root) == rows(whole)
    attacks(1)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["1.2", "validation 1", "end"])
def test_ctrl_c_leaves_results_and_the_run_goes_on(processes, whole, place, tmp_path, attacks):
    root, output = tmp_path / "run", tmp_path / "output"
    code, _ = killing.run(processes, train, root, OPTIONS, place, "SIGINT", output=output)
    assert code == 130, output.read_text()
    results = root / "results.json"
    if place == "end":  # of a second one, or where all is trained: at once
        assert not results.exists()
    else:
        assert "Ctrl-C: the run ends after this update" in output.read_text()
        assert json.loads(results.read_text())["ended"] == "interrupted"
        assert (root / "model.safetensors").is_file()
        assert (root / "report.html").is_file()
    code, _ = killing.run(processes, train, root, OPTIONS, output=output)
    assert code == 0, output.read_text()
    assert_same_weights(whole, root)
    assert rows(root) == rows(whole)
    assert json.loads(results.read_text())["ended"] == "complete"
    attacks(1)


def test_a_second_ctrl_c_ends_at_once():
    request = StopRequest([])
    with request.listening():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        request.name, request.waits = None, True
        os.kill(os.getpid(), signal.SIGINT)
        assert request.name == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def in_a_group(*args: Any) -> None:
    """As a job, whose processes a scheduler signals all at once."""
    os.setsid()
    train(*args)


@pytest.mark.slow
def test_a_detector_goes_on_from_within_an_epoch(processes, tmp_path, attacks):
    write_coco(tmp_path / "data", images=7)
    recipe = {**RECIPES["boxes"], "data": {**RECIPES["boxes"]["data"], "root": str(tmp_path / "data")}}
    (tmp_path / "boxes.yaml").write_text(yaml.safe_dump({**recipe, "trainer": {**recipe["trainer"], "max_epochs": 2}}))
    whole, root, output = tmp_path / "whole" / "run", tmp_path / "run", tmp_path / "output"
    name = str(tmp_path / "boxes.yaml")
    assert killing.run(processes, train, whole, {}, "", "", name, output=output)[0] == 0, output.read_text()
    for place, event in (("0.1", "SIGTERM"), ("validation 1", "SIGHUP")):
        code, _ = killing.run(processes, train, root, {}, place, event, name, output=output)
        assert code == 2, output.read_text()
        assert f"error: stopped by {event}; {root}/last.ckpt keeps the run up to batch " in output.read_text()
    assert killing.run(processes, train, root, {}, "", "", name, output=output)[0] == 0, output.read_text()
    assert_same_weights(whole, root)
    assert rows(root) == rows(whole)
    attacks(2)


def test_signals_are_noticed_within_only(monkeypatch):
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    monkeypatch.setattr(stopping, "log", logging.getLogger("test"))
    request = StopRequest(stopping.SIGNALS)
    with request.listening():
        for number in stopping.SIGNALS:
            with pytest.raises(StopNow, match=number.name):
                os.kill(os.getpid(), number)
        request.waits = True
        os.kill(os.getpid(), signal.SIGHUP)
        assert request.name == "SIGHUP"
    assert {number: signal.getsignal(number) for number in stopping.SIGNALS} == before


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest(stopping.SIGNALS).listening():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_thread_of_a_program_leaves_its_signals_alone():
    before = signal.getsignal(signal.SIGTERM)
    entered: list[Any] = []

    def listen() -> None:
        with StopRequest(stopping.SIGNALS).listening():
            entered.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert entered == [before]


def test_slurm_queues_the_job_again_at_its_signal(tmp_path, monkeypatch, caplog):
    assert slurm_requeue_signal([]) is None
    for name, value in (("NTASKS", "1"), ("JOB_NAME", "train"), ("JOB_ID", "17"), ("NTASKS_PER_NODE", "1")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert slurm_requeue_signal([]) == signal.SIGUSR1
    assert slurm_requeue_signal([SLURMEnvironment(requeue_signal=signal.SIGHUP)]) == signal.SIGHUP
    assert slurm_requeue_signal([SLURMEnvironment(auto_requeue=False)]) is None
    program = tmp_path / "scontrol"
    said = tmp_path / "said"
    program.write_text(f"#!{sys.executable}\nimport sys\nopen({str(said)!r}, 'w').write(' '.join(sys.argv[1:]))")
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.WARNING, "focalnet"):
        stopping._requeue()
    assert "does not queue" in caplog.text  # it may not be run
    program.chmod(0o755)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    stopping._requeue()
    assert said.read_text() == "requeue 5_3"
