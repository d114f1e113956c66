"""What happens to the folder of a run while it goes: it is removed, renamed, replaced, or a second run starts in it."""

# ruff: noqa: E402 (what follows imports the extras)
from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

for package in ("lightning", "jsonargparse", "tensorboard"):
    pytest.importorskip(package, reason="runs need the extra train")

from focalnet.cli.train import fit
from focalnet.errors import ConfigError
from focalnet.training import lock as locks
from focalnet.training.lock import RunLock
from tests.attacks import killing
from tests.attacks.runs import OPTIONS, train
from tests.training.toy import assert_same_weights

DIGITS = "classification/digits"


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


def errors(output: Path) -> list[str]:
    lines = output.read_text().splitlines()
    assert "Traceback (most recent call last):" not in lines
    return [line for line in lines if line.startswith("error: ")]


@pytest.mark.slow
@pytest.mark.parametrize("event", ["remove", "rename", "replace"])
def test_the_folder_is_gone_during_a_run(processes, whole, event, tmp_path, attacks):
    root, output = tmp_path / "run", tmp_path / "output"
    code, _ = killing.run(processes, train, root, OPTIONS, "1.3", event, output=output)
    [line] = errors(output)
    assert code == 2
    assert line.startswith(f"error: {root} was removed, renamed or replaced during the run")
    if event == "rename":
        assert not root.exists()
        code, _ = killing.run(processes, train, tmp_path / "renamed", OPTIONS, output=output)
        assert code == 0
        assert_same_weights(whole, tmp_path / "renamed")
    elif event == "replace":
        assert root.read_text() == "mine"
    else:
        assert not root.exists()
    attacks(1)


PROGRAM = """
import shutil, sys
from focalnet.cli.main import main
from focalnet.training import ClassificationTask
step = ClassificationTask.validation_step
def removing(self, batch, batch_idx):
    shutil.rmtree(sys.argv[-1], ignore_errors=True)
    return step(self, batch, batch_idx)
ClassificationTask.validation_step = removing
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_the_interpreter_ends_as_after_every_error(tmp_path, attacks):
    """PyTorch would abort it, after an error in validation."""
    options = ("--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--data.num_workers=0")
    program = [sys.executable, "-c", PROGRAM, "fit", DIGITS, *options, "--output", str(tmp_path / "run")]
    run = subprocess.run(program, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert run.returncode == 2, run.stderr
    progress, error = run.stderr.splitlines()
    assert progress.startswith("a training step needs at least")
    assert error.startswith(f"error: {tmp_path / 'run'} was removed")
    attacks(1)


@pytest.mark.slow
def test_a_second_run_is_refused_and_goes_on_after_the_first_is_killed(processes, whole, tmp_path, caplog, attacks):
    root, output = tmp_path / "run", tmp_path / "output"
    options = {**OPTIONS, "data.num_workers": 1}  # its process lives a little longer than the killed one
    first = killing.start(processes, train, root, options, "1.3", "wait", output=output)
    while first.is_alive() and not (tmp_path / "waiting").exists():
        time.sleep(0.01)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != ".lock"}
    who = f"in use by another run \\(process {first.pid} on {socket.gethostname()}, since "
    for force in (False, True):
        with pytest.raises(ConfigError, match=who) as error:
            fit(DIGITS, output=root, force=force, **options)
        assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in before} == before
    first.kill()
    first.join()
    code, _ = killing.run(processes, train, root, options, output=output)
    assert code == 0, output.read_text()
    assert f"taking over from another run (process {first.pid} " in output.read_text()
    assert_same_weights(whole, root)
    assert not (root / ".lock").exists()
    attacks(3)


def hold(path: Path, end: Path) -> None:
    lock = RunLock(path)
    try:
        lock.take()
    except ConfigError:
        sys.exit(2)
    while not end.exists():
        time.sleep(0.01)
    lock.release()


def test_of_many_at_once_one_gets_the_lock(processes, tmp_path, attacks):
    for number in range(3):
        path, end = tmp_path / f"run{number}" / ".lock", tmp_path / f"end{number}"
        started = [killing.start(processes, hold, path, end, output=tmp_path / f"{i}") for i in range(6)]
        while sum(process.is_alive() for process in started) > 1:
            time.sleep(0.01)
        end.touch()
        for process in started:
            process.join()
        assert sorted(process.exitcode for process in started) == [0, 2, 2, 2, 2, 2]
        assert not path.exists()
    attacks(18)


def test_the_lock_of_one_process(tmp_path):
    """A second run in it, in another thread perhaps, is refused; workers that it forks do not hold the lock."""
    first, second = RunLock(tmp_path / "run" / ".lock"), RunLock(tmp_path / "run" / ".lock")
    first.take()
    for refused in (second.take, second.refuse_if_taken):
        with pytest.raises(ConfigError, match=f"in use by another run .process {os.getpid()} "):
            refused()
    assert first.in_place
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    try:
        first.release()
        assert list((tmp_path / "run").iterdir()) == []
        second.take()
        second.release()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_lock_whose_folder_is_another_one(tmp_path):
    lock = RunLock(tmp_path / "run" / ".lock")
    lock.take()
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert not lock.in_place
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_text("{}")
    assert not lock.in_place
    lock.release()
    assert (tmp_path / "run" / ".lock").read_text() == "{}"  # not ours


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "lockf", refuse)
    path = tmp_path / ".lock"
    sleeping = subprocess.Popen(["sleep", "60"])
    try:
        path.write_text(json.dumps({"pid": sleeping.pid, "host": socket.gethostname()}))
        for refused in (RunLock(path).take, RunLock(path).refuse_if_taken):
            with pytest.raises(ConfigError, match=f"process {sleeping.pid}"):
                refused()
    finally:
        sleeping.kill()
        sleeping.wait()
    with caplog.at_level(logging.WARNING, "focalnet"):
        lock = RunLock(path)
        lock.take()
    assert "this file system has no file locks" in caplog.text
    lock.release()


@pytest.mark.parametrize("content", ["", "{}", "[]", "<html>", '{"pid": "x", "host": 7}', "\0" * 5000])
def test_a_lock_file_that_says_nothing(tmp_path, content):
    path = tmp_path / ".lock"
    path.write_text(content)
    RunLock(path).refuse_if_taken()
    lock = RunLock(path)
    lock.take()
    assert json.loads(path.read_text())["pid"] == os.getpid()
