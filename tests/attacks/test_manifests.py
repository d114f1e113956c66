"""Each row is predicted once, whatever is killed at whatever moment, and however many work at the same time."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from focalnet.errors import DataError, FocalNetError
from focalnet.inference.manifest import running
from focalnet.inference.manifest.ledger import NAME
from tests.attacks.killing import Killer, ten_moments
from tests.inference.manifest.stub import job, read_rows

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
LONG = pytest.mark.skipif("FOCALNET_LONG" not in os.environ, reason="takes minutes; set FOCALNET_LONG=1")
fork = multiprocessing.get_context("fork")


def write_list(path: Path, count: int) -> list[str]:
    """A manifest in which paths occur twice and every 50th row has an error."""
    paths = [f"/images/{'bad' if i % 50 == 7 else 'good'}-{i // 2}.jpg" for i in range(count)]
    path.write_text("\n".join(paths) + "\n")
    return paths


def check(out: Path, paths: list[str]) -> None:
    rows = read_rows(out)
    assert [row["row"] for row in rows] == list(range(len(paths)))  # once each
    assert [row["path"] for row in rows] == paths
    for row, path in zip(rows, paths, strict=True):
        assert row["error"] == (f"{path}: is bad" if "bad" in path else None)
        assert (row["top"] or [{"name": path}])[0]["name"] == path
    assert not [name for name in os.listdir(out) if name.endswith(".part")]


def start(*args: Any, **options: Any) -> Any:
    """Starts a run in a process group of its own."""

    def main() -> None:
        os.setpgrp()
        running.run(job(*args, **options), lambda line: None, start_method="fork")

    process = fork.Process(target=main)
    process.start()
    os.setpgid(process.pid, process.pid)  # whichever of the two comes first: it may be killed before it does so itself
    return process


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=LONG)])
def test_twenty_random_kills_of_four_workers(kills, tmp_path, attacks):
    order = random.Random(kills)
    paths = write_list(tmp_path / "list.txt", 120 * kills)
    options: dict[str, Any] = {"rows_per_shard": 15, "workers": 4, "seconds": 0.01}
    done = Counter[str]()
    while sum(done.values()) < kills:
        pids = tmp_path / f"processes-{sum(done.values())}"
        pids.mkdir()
        run = start(tmp_path / "list.txt", tmp_path / "out", processes=pids, **options)
        time.sleep(order.uniform(0.01, 0.4))
        victim = ("all", "parent", "worker")[len(list(tmp_path.glob("processes-*"))) % 3]
        if victim == "worker":
            while not (workers := [int(path.name) for path in pids.iterdir()]):
                time.sleep(0.01)
            os.kill(order.choice(workers), signal.SIGKILL)
            done["worker"] += 1
            time.sleep(order.uniform(0.01, 0.2))
        assert run.is_alive()
        if victim == "parent":
            os.kill(run.pid, signal.SIGKILL)  # its workers end by themselves, beside those of the next run
        else:
            os.killpg(run.pid, signal.SIGKILL)
        done["parent" if victim == "parent" else "all"] += 1
        run.join()
    assert min(done.values()) > kills / 10
    assert NAME in os.listdir(tmp_path / "out")
    options["seconds"] = 0
    totals = running.run(job(tmp_path / "list.txt", tmp_path / "out", **options), lambda line: None, "fork")
    assert (totals.rows, totals.missing) == (len(paths), 0)
    check(tmp_path / "out", paths)
    attacks(sum(done.values()))


@pytest.mark.parametrize("shard_format", ["jsonl", "parquet"])
def test_a_kill_at_every_moment_of_writing(shard_format, tmp_path, attacks):
    paths = write_list(tmp_path / "list.txt", 30)

    def killed_at(moment: int | None, out: Path) -> tuple[int, int]:
        def main() -> None:
            killer = Killer(moment)
            running.work(one, 0, lambda line: None)
            count.value = killer.moments

        one = job(tmp_path / "list.txt", out, rows_per_shard=15, shard_format=shard_format)
        count = fork.Value("i", 0)
        process = fork.Process(target=main)
        process.start()
        process.join()
        return process.exitcode, count.value

    code, moments = killed_at(None, tmp_path / "whole")
    assert code == 0
    assert moments > 20
    chosen = range(moments) if shard_format == "jsonl" else ten_moments(moments, seed=0)
    attacks(len(chosen))
    for moment in chosen:
        out = tmp_path / str(moment)
        assert killed_at(moment, out)[0] == -signal.SIGKILL
        assert killed_at(None, out)[0] == 0
        check(out, paths)
        assert sorted(os.listdir(out)) == sorted(os.listdir(tmp_path / "whole"))


def test_runs_in_one_folder_share_the_shards(tmp_path):
    paths = write_list(tmp_path / "list.txt", 400)
    runs = [
        start(tmp_path / "list.txt", tmp_path / "out", rows_per_shard=10, workers=2, seconds=0.001) for _ in range(3)
    ]
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0, 0]
    check(tmp_path / "out", paths)
    assert len((tmp_path / "out" / NAME).read_text().splitlines()) == 1 + 40  # each was predicted once


def test_a_killed_worker_is_replaced_by_the_others(tmp_path, caplog):
    paths = write_list(tmp_path / "list.txt", 120)
    (tmp_path / "processes").mkdir()

    def kill_one(line: str) -> None:
        if not killed:
            killed.append(sorted(int(path.name) for path in (tmp_path / "processes").iterdir())[-1])
            os.kill(killed[0], signal.SIGKILL)

    killed: list[int] = []
    options: dict[str, Any] = {"workers": 3, "seconds": 0.005, "processes": tmp_path / "processes"}
    totals = running.run(job(tmp_path / "list.txt", tmp_path / "out", rows_per_shard=10, **options), kill_one, "fork")
    assert totals.missing == 0
    assert f"process {killed[0]} was killed (signal 9); the others take over its shard" in caplog.text
    check(tmp_path / "out", paths)


def die(image: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(image: Any) -> None:
    raise DataError("the manifest is gone")


def divide(image: Any) -> None:
    sys.stderr = open(os.devnull, "w")  # the traceback
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("fails", "error", "message"),
    [
        (die, FocalNetError, "all processes were killed, and 12 of 12 shards are not finished: run the same command"),
        (refuse, DataError, "the manifest is gone"),
        (divide, FocalNetError, "failed, as shown above; what was finished before is kept"),
    ],
)
def test_what_ends_all_processes_is_told(fails, error, message, tmp_path):
    write_list(tmp_path / "list.txt", 120)
    failing = job(tmp_path / "list.txt", tmp_path / "out", rows_per_shard=10, workers=2, fails=fails)
    with pytest.raises(error, match=message):
        running.run(failing, lambda line: None, "fork")


@LONG
def test_the_command_survives_twenty_kills(tmp_path):
    order = random.Random(0)
    for i in range(3000):
        Image.new("RGB", (32, 32), (i % 256, i // 256, 0)).save(tmp_path / f"{i}.bmp")
    (tmp_path / "list.txt").write_text("".join(f"{i}.bmp\n" for i in range(3000)))
    command = [sys.executable, "-m", "focalnet", "predict", "list.txt", "--out", "out", "--rows-per-shard", "40"]
    for _ in range(20):
        run = subprocess.Popen([*command, "--workers", "4"], cwd=tmp_path, start_new_session=True)
        time.sleep(order.uniform(2, 14))
        (os.killpg if order.random() < 0.5 else os.kill)(run.pid, signal.SIGKILL)
        run.wait()
    subprocess.run([*command, "--workers", "4"], cwd=tmp_path, check=True)
    rows = read_rows(tmp_path / "out")
    assert [row["path"] for row in rows] == [f"{i}.bmp" for i in range(3000)]
    assert all(row["top"] for row in rows)
