"""One of the processes of a run is killed: the others end in one line, and the run goes on later."""

# ruff: noqa: E402 (what follows imports the extras)
from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

for package in ("lightning", "jsonargparse", "tensorboard"):
    pytest.importorskip(package, reason="runs need the extra train")

from focalnet.training.checkpoints import AtomicCheckpoints
from focalnet.training.processes import STARTER, Watch
from focalnet.training.run_folder import RunFolder
from focalnet.training.stopping import SIGNALS, StopOnSignal, StopRequest
from tests.attacks import killing
from tests.attacks.runs import OPTIONS, train
from tests.training.toy import assert_same_weights

IN_TWO = {**OPTIONS, "trainer.devices": 2, "trainer.strategy": "ddp"}


@pytest.fixture(scope="module")
def processes():
    return killing.server()


def rank(number: int, port: int, *args: Any) -> None:
    """One of two processes, started by hand."""
    os.environ.update(LOCAL_RANK=f"{number}", NODE_RANK="0", WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=f"{port}")
    train(*args)


def in_two(
    context: Any, root: Path, place: str = "", events: tuple[str, str] = ("", "")
) -> tuple[list[int], list[str]]:
    """Exit codes and outputs of both processes; nothing happens at the place in a process without an event."""
    root.parent.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    outputs = [root.with_name(f"output{number}") for number in range(2)]
    both = [
        killing.start(context, rank, i, port, root, IN_TWO, place if event else "", event, output=output)
        for i, (event, output) in enumerate(zip(events, outputs, strict=True))
    ]
    for process in both:
        process.join(120)
        assert process.exitcode is not None
    return [process.exitcode for process in both], [output.read_text() for output in outputs]


@pytest.mark.slow
def test_a_killed_process_ends_the_others(processes, tmp_path, attacks):
    """Either of them; a signal to one ends both, too, with a checkpoint. Then the run goes on to the same end."""
    assert in_two(processes, tmp_path / "whole" / "run")[0] == [0, 0]
    root = tmp_path / "run"
    for place, events, codes in (
        ("1.1", ("", "SIGKILL"), [2, -signal.SIGKILL]),
        ("1.3", ("SIGKILL", ""), [-signal.SIGKILL, 2]),
    ):
        found, outputs = in_two(processes, root, place, events)
        assert found == codes, outputs
        survivor = outputs[codes.index(2)]
        errors = [line for line in survivor.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, survivor
        [line] = errors
        assert line.startswith("error: another process of this run has died"), survivor
        assert line.endswith(f"{root}/last.ckpt keeps the last complete epoch, and the same command goes on from it")
        assert "Traceback" not in survivor
    codes, outputs = in_two(processes, root, "1.3", ("", "SIGTERM"))
    assert codes == [2, 2]
    for output, reason in zip(outputs, ("a signal to another of its processes", "SIGTERM"), strict=True):
        assert f"error: stopped by {reason}; {root}/last.ckpt keeps the run up to batch 4 of epoch 2" in output
    codes, outputs = in_two(processes, root)
    assert codes == [0, 0], outputs
    assert_same_weights(tmp_path / "whole" / "run", root)
    attacks(3)


def watch(started: list[str], mark: Path) -> None:
    """A process that waits for another one without end, as in a collective operation on GPUs."""
    process = subprocess.Popen(started)
    mark.write_text(str(process.pid))
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(launcher=SimpleNamespace(procs=[process])))
    observer = Watch(every_s=0.05, patience_s=0.1)
    with observer.running():
        observer.setup(trainer, trainer, "fit")
        assert trainer.strategy.launcher.procs == []
        time.sleep(600)


def child_of(mark: Path) -> None:
    """Starts a process as Lightning does, which waits; and is killed itself."""
    os.environ[STARTER] = str(os.getpid())
    if child := os.fork():
        mark.write_text(str(child))
        time.sleep(600)
    observer, trainer = Watch(every_s=0.05, patience_s=0.1), SimpleNamespace(strategy=SimpleNamespace(launcher=None))
    with observer.running():
        observer.setup(trainer, trainer, "fit")
        time.sleep(600)


def test_a_process_that_waits_for_a_killed_one_ends(processes, tmp_path, attacks):
    mark, output = tmp_path / "mark", tmp_path / "output"
    process = killing.start(processes, watch, ["sleep", "600"], mark, output=output)
    os.kill(number_in(mark), signal.SIGKILL)
    process.join(60)
    assert process.exitcode == 2
    assert "of this run has died (exit code -9), and this process ends with it" in output.read_text()
    process = killing.start(processes, watch, ["true"], mark, output=output)  # that one just has done its part
    time.sleep(1)
    assert process.is_alive()
    process.kill()
    process.join()
    attacks(2)


def test_a_process_ends_with_the_one_that_has_started_it(processes, tmp_path, attacks):
    mark, output = tmp_path / "mark", tmp_path / "output"
    starter = killing.start(processes, child_of, mark, output=output)
    child = number_in(mark)
    starter.kill()
    starter.join()
    until = time.monotonic() + 60
    while runs(child) and time.monotonic() < until:
        time.sleep(0.01)
    assert not runs(child)
    assert f"process {starter.pid} of this run has died, and this process ends with it" in output.read_text()
    attacks(1)


def test_what_lightning_sends_to_processes_that_it_spawns(tmp_path):
    folder = RunFolder(tmp_path)
    request = StopRequest(SIGNALS)
    for one in (Watch(), StopOnSignal(request, folder, None), AtomicCheckpoints(folder, "")):
        assert type(pickle.loads(pickle.dumps(one))) is type(one)


def number_in(mark: Path) -> int:
    while not mark.exists() or not mark.read_text():
        time.sleep(0.01)
    return int(mark.read_text())


def runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
