"""Damaged files in a run's folder: one line, and the checkpoint before is used, or the way to start again is said."""

# ruff: noqa: E402 (what follows imports the extras)
from __future__ import annotations

import json
import logging
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

for package in ("lightning", "jsonargparse", "tensorboard"):
    pytest.importorskip(package, reason="runs need the extra train")

import torch
import yaml

from focalnet.errors import CheckpointError, ConfigError, FocalNetError, TrainingError
from focalnet.training.checkpoints import MARK, SEAL_SIZE, AtomicCheckpoints, choose_resume_point
from focalnet.training.failures import explained
from focalnet.training.options import Options
from focalnet.training.run_folder import RunFolder
from tests.attacks.test_kills import network, state

PAGE = b"<!doctype html><html><title>Sign in</title>" + b"<p>please</p>" * 200
RECIPE: dict[str, Any] = {
    "model": {"architecture": "focalnet_nano", "optimizer": {"lr": 0.5}},
    "data": {"root": "somewhere"},
    "trainer": {"max_epochs": 9},
}


def zipped(**files: bytes) -> bytes:
    path = Path("foreign.zip")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path.read_bytes()


def pickled(content: Any) -> bytes:
    torch.save(content, "foreign.pth")
    return Path("foreign.pth").read_bytes()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture(scope="module")
def options() -> Options:
    return Options(RECIPE)


@pytest.fixture
def folder(tmp_path, options) -> RunFolder:
    """A run after two epochs."""
    folder = RunFolder(tmp_path / "run")
    folder.write(folder.config, options.to_yaml().encode())
    for epochs in (1, 2):
        AtomicCheckpoints(folder, options.to_yaml()).save_checkpoint(state("classification", epochs), folder.checkpoint)
    folder.write(folder.metrics, b"epoch,updates\n1,3\n2,6\n")
    return folder


def unsealed(folder: RunFolder) -> None:
    """Makes both checkpoints those of an earlier version."""
    for path in (folder.checkpoint, folder.previous):
        content = torch.load(path, weights_only=True)
        content.pop("options")
        path.unlink()
        torch.save(content, path)


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda content: None,
    "empty": lambda content: b"",
    "a web page": lambda content: PAGE,
    "half": lambda content: content[: len(content) // 2],
    "without its last byte": lambda content: content[:-1],
    "without its seal": lambda content: content[:-SEAL_SIZE],
    "with a byte behind": lambda content: content + b"\0",
    "zeros": lambda content: bytes(len(content)),
    "zeros from the middle": lambda content: content[: len(content) // 2] + bytes(len(content) - len(content) // 2),
    "another zip file": lambda content: zipped(notes=b"mine"),
    "weights": lambda content: pickled({"model": {"a": torch.ones(3)}}),
    "a tensor": lambda content: pickled(torch.ones(3)),
    "half of a run's": lambda content: pickled({"state_dict": {}, "loops": {}}),
    "a program": lambda content: pickled({"state_dict": Program(), "loops": {}}),
}


class Program:
    """Unpickling it would write a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("was run", "w")


def one_line(error: pytest.ExceptionInfo[FocalNetError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("earlier", [False, True])
def test_a_damaged_checkpoint(folder, options, earlier, caplog, attacks):
    if earlier:
        unsealed(folder)
    last, previous = folder.checkpoint.read_bytes(), folder.previous.read_bytes()
    for name, damage in DAMAGES.items():
        if name == "without its seal" and earlier:
            continue
        folder.previous.write_bytes(previous)
        damaged = damage(last)
        folder.checkpoint.unlink(missing_ok=True)
        if damaged is not None:
            folder.checkpoint.write_bytes(damaged)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "focalnet"):
            start = folder.start(options)
        assert (start.state, start.point.path, start.point.epochs) == ("unfinished", folder.previous, 1), name
        assert [str(folder.checkpoint) in line for line in caplog.messages] == [True], name
        assert f"going on from {folder.previous}" in caplog.text
        folder.previous.unlink()  # a run without: one epoch is lost
        if damaged is not None:
            with pytest.raises(CheckpointError, match=r"last.ckpt.*--force") as error:
                folder.start(options)
            one_line(error)
    assert not Path("was run").exists()
    attacks(2 * len(DAMAGES))


@pytest.mark.parametrize("earlier", [False, True])
def test_one_flipped_byte_anywhere(folder, options, earlier, attacks):
    """Sealed, every one is noticed; in files of earlier versions, every one that would change what is read."""
    if earlier:
        unsealed(folder)
    content = folder.checkpoint.read_bytes()
    truth = torch.load(folder.checkpoint, weights_only=True)["state_dict"]
    rng = random.Random(0)
    places = rng.sample(range(len(content)), 300)
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        folder.checkpoint.write_bytes(flipped)
        point = choose_resume_point(folder.checkpoint, folder.previous)
        if point.path == folder.checkpoint:
            assert earlier, place
            found = torch.load(folder.checkpoint, weights_only=True)["state_dict"]
            assert all(torch.equal(found[name], value) for name, value in truth.items())
    attacks(len(places))


def test_a_checkpoint_is_read_by_every_program_as_before(folder):
    content = folder.checkpoint.read_bytes()
    assert content[-SEAL_SIZE:].startswith(MARK)
    assert zipfile.ZipFile(folder.checkpoint).testzip() is None
    assert set(torch.load(folder.checkpoint, weights_only=True)) == {*state("classification", 2), "options"}


def test_a_damaged_checkpoint_does_not_take_the_place_of_the_whole_one_before_it(folder, options):
    folder.checkpoint.write_bytes(PAGE)
    writer = AtomicCheckpoints(folder, options.to_yaml(), from_previous=True)
    for epochs in (2, 3):
        writer.save_checkpoint(state("classification", epochs), folder.checkpoint)
        assert choose_resume_point(folder.previous, folder.previous).epochs == epochs - 1
        assert choose_resume_point(folder.checkpoint, folder.previous).epochs == epochs


def test_a_file_system_without_links(folder, options, monkeypatch):
    def refuse(*_: Any) -> None:
        raise OSError("not here")

    monkeypatch.setattr("os.link", refuse)
    AtomicCheckpoints(folder, options.to_yaml()).save_checkpoint(state("classification", 3), folder.checkpoint)
    assert [choose_resume_point(path, path).epochs for path in (folder.checkpoint, folder.previous)] == [3, 2]


CONFIGS: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda content: None,
    "empty": lambda content: b"",
    "a web page": lambda content: PAGE,
    "a list": lambda content: b"- 1\n- 2\n",
    "bytes": lambda content: bytes(range(256)),
    "an unclosed bracket": lambda content: content[:500] + b"\n[",
    "deep": lambda content: b"[" * 5000,
    "cut": lambda content: content[: content.index(b"optimizer")],
}


def test_a_damaged_config(folder, options, caplog, attacks):
    """What the checkpoint says of its options counts, and no other options are gone on with."""
    content = folder.config.read_bytes()
    other = Options({**RECIPE, "trainer": {**RECIPE["trainer"], "precision": "bf16-mixed"}})
    for name, damage in CONFIGS.items():
        damaged = damage(content)
        folder.config.unlink(missing_ok=True)
        if damaged is not None:
            folder.config.write_bytes(damaged)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "focalnet"):
            assert folder.start(options).state == "unfinished"
        if name != "cut":
            assert "config.yaml is " in caplog.text, name
            assert "written again" in caplog.text
        with pytest.raises(ConfigError, match=r"precision: .*, now .*bf16-mixed"):
            folder.start(other)
    unsealed(folder)  # now nobody knows
    for name, damage in CONFIGS.items():
        damaged = damage(content)
        folder.config.unlink(missing_ok=True)
        if damaged is not None:
            folder.config.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"--force") as error:
            folder.start(options)
        one_line(error)
        if name != "cut":
            assert "--print_config" in str(error.value)
    attacks(2 * len(CONFIGS))


def test_options_that_are_new_since_the_run_began_are_said(folder, options, caplog):
    unsealed(folder)
    content = yaml.safe_load(folder.config.read_text())
    del content["model"]["ema_decay"], content["data"]["augmentation"]
    folder.config.write_text(yaml.safe_dump(content))
    with caplog.at_level(logging.WARNING, "focalnet"):
        assert folder.start(options).state == "unfinished"
    assert "begun without data.augmentation, model.ema_decay: going on with the default" in caplog.text
    with pytest.raises(ConfigError, match=r"model.ema_decay: None, now 0.5"):
        folder.start(Options({**RECIPE, "model": {**RECIPE["model"], "ema_decay": 0.5}}))
    with pytest.raises(ConfigError, match=r"other options"):
        folder.start(Options({**RECIPE, "task": "semantic"}))


def test_checkpoints_that_are_gone(folder, options):
    folder.checkpoint.unlink()
    folder.previous.unlink()
    with pytest.raises(ConfigError, match=r"last.ckpt is missing.*2 epochs.*--force") as error:
        folder.start(options)
    one_line(error)
    assert folder.start(options, force=True).state == "new"
    folder.results.write_text("{}")  # finished, and the checkpoint removed to save space
    assert folder.start(options).state == "finished"


def test_a_checkpoint_that_lightning_left_for_slurm(folder, options):
    """It would go on from it, whatever the options."""
    for path in (folder.checkpoint, folder.previous, folder.metrics):
        path.unlink()
    left = folder.root / "hpc_ckpt_1.ckpt"
    left.write_bytes(pickled({}))
    with pytest.raises(ConfigError, match=r"hpc_ckpt_1.ckpt.*--force") as error:
        folder.start(options)
    one_line(error)
    folder.clear()
    assert not left.exists()


@pytest.mark.parametrize("content", [b"", PAGE, b'{"top1": 9', b"[]", b"\xff\xfe"])
def test_damaged_results_are_made_anew(folder, options, content, caplog):
    folder.results.write_bytes(content)
    with caplog.at_level(logging.WARNING, "focalnet"):
        assert folder.start(options).state == "unfinished"
    assert "results.json is damaged and will be written again" in caplog.text
    folder.results.write_bytes(json.dumps({"top1": 1}).encode())
    assert folder.start(options).state == "finished"


def test_a_checkpoint_that_does_not_fit(folder):
    """The data has another number of classes than when the run began."""
    content = torch.load(folder.checkpoint, weights_only=True)["state_dict"]
    other = torch.nn.ModuleDict({"network": network("detection")})
    with (
        pytest.raises(ConfigError, match=r"does not fit.*--force") as error,
        explained(folder),
    ):
        other.load_state_dict(content)
    one_line(error)


@pytest.mark.parametrize("root", ["x" * 300, "/".join(["x" * 200] * 25), "file/run", "file", "/proc/run"])
def test_folders_that_cannot_be(options, root):
    Path("file").touch()
    folder = RunFolder(Path(root))

    def opened() -> None:
        folder.start(options)
        folder.lock.take()

    with pytest.raises(TrainingError, match=r"choose another --output") as error:
        opened()
    one_line(error)
    assert not folder.lock.held
