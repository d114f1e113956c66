"""What stops a run from outside: one clear line, and the last good state kept."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

from focalnet.cli.train import fit
from focalnet.data.readers.digits import Digits
from focalnet.errors import ConfigError, DataError, ImageError, TrainingError
from focalnet.training import ClassificationTask
from focalnet.training.failures import explained
from focalnet.training.run_folder import write
from tests.training.toy import MIXED, assert_same_weights

DIGITS = "classification/digits"
KEPT = "keeps the last complete epoch, and the same command goes on from it"


def first_epoch_is_kept_and_the_run_goes_on(folder: Path, whole: Path, **options: object) -> None:
    assert torch.load(folder / "last.ckpt", weights_only=True)["epoch"] == 0
    assert not list(folder.glob("*.part"))
    assert not (folder / "results.json").exists()
    fit(DIGITS, output=folder, **{**MIXED, **options})
    assert_same_weights(whole, folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fit(DIGITS, output=tmp_path_factory.mktemp("whole") / "run", **MIXED)


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def stopped(
    folder: Path, monkeypatch: pytest.MonkeyPatch, broken: tuple[object, str, object], **options: object
) -> str:
    """The line in which a run ends while something is broken: ``(object, name, replacement)``."""
    with monkeypatch.context() as patch:
        patch.setattr(*broken)
        with pytest.raises(TrainingError) as error:
            fit(DIGITS, output=folder, **{**MIXED, **options})
    return one_line(error)


def test_a_loss_that_is_no_number(tmp_path, monkeypatch, whole):
    step = ClassificationTask.training_step

    def broken(self, batch, batch_idx):
        return step(self, batch, batch_idx) * (float("nan") if self.current_epoch == 1 else 1.0)

    message = stopped(tmp_path / "run", monkeypatch, (ClassificationTask, "training_step", broken))
    assert "the loss became NaN or infinite in epoch 2" in message
    assert "--model.optimizer.lr" in message
    assert KEPT in message
    first_epoch_is_kept_and_the_run_goes_on(tmp_path / "run", whole)


def test_a_full_disk_while_the_checkpoint_is_written(tmp_path, monkeypatch, whole):
    fsync, checkpoints = os.fsync, []

    def full(descriptor: int) -> None:
        if "last.ckpt" in os.readlink(f"/proc/self/fd/{descriptor}"):
            checkpoints.append(descriptor)
            if len(checkpoints) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    message = stopped(tmp_path / "run", monkeypatch, (os, "fsync", full))
    assert "cannot write" in message
    assert "last.ckpt: No space left on device" in message
    assert KEPT in message
    first_epoch_is_kept_and_the_run_goes_on(tmp_path / "run", whole)


# PyTorch notices a dead worker in a signal handler, wherever the process is just then: also in a destructor.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_workers_death(tmp_path, monkeypatch, whole):
    read, parent, calls = Digits.content, os.getpid(), []

    def deadly(self, index):
        calls.append(index)
        if os.getpid() != parent and len(calls) > 170:  # 3 batches of 32 are used in an epoch, 2 more are prefetched
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, index)

    options = {"data.num_workers": 1, "data.cache_in_memory": False}
    message = stopped(tmp_path / "run", monkeypatch, (Digits, "content", deadly), **options)
    assert "a data loading worker died" in message
    assert "--data.num_workers" in message
    first_epoch_is_kept_and_the_run_goes_on(tmp_path / "run", whole, **options)


def test_a_worker_that_sigterm_stops_did_not_die_for_want_of_memory():
    error = RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")  # both in PyTorch's words
    error.__cause__ = RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")
    with pytest.raises(TrainingError, match="stopped by SIGTERM; nothing was written"), explained():
        raise error


def test_a_run_that_fails_in_its_first_epoch_leaves_nothing_behind(tmp_path, monkeypatch):
    def broken(self, batch, batch_idx):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ClassificationTask, "training_step", broken)
    with pytest.raises(TrainingError, match=r"no space left.*nothing was kept"):
        fit(DIGITS, output=tmp_path / "run", **MIXED)
    assert not (tmp_path / "run").exists()


def test_a_run_that_cannot_start_leaves_the_one_that_was_there(tmp_path):
    run = fit(DIGITS, output=tmp_path / "run", **MIXED)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(DataError):
        fit("classification/finetune", output=run, force=True, **{"data.root": tmp_path / "nowhere"})
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    with pytest.raises(DataError):
        fit("classification/finetune", output=tmp_path / "new", **{"data.root": tmp_path / "nowhere"})
    assert not (tmp_path / "new").exists()


def test_a_run_may_start_afresh_from_its_own_weights(tmp_path):
    run = fit(DIGITS, output=tmp_path / "run", **MIXED)
    own = {"model.architecture": None, "model.weights": run / "model.safetensors"}
    assert fit(DIGITS, output=run, force=True, **{**MIXED, **own}) == run


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "file"
    write(target, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match="No space left"):
        write(target, b"new")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trainer.strategy": "fsdp", "model.ema_decay": None}, "FSDP|fsdp"),
        ({"trainer.strategy": "nonsense"}, "nonsense"),
        ({"trainer.accelerator": "tpu"}, "torch_xla"),
        ({"trainer.max_steps": 0}, "max_steps"),
        ({"trainer.limit_train_batches": 0}, "limit_train_batches"),
        ({"trainer.limit_val_batches": 0.0}, "limit_val_batches"),
        ({"trainer.limit_test_batches": 0}, "limit_test_batches"),
        ({"trainer.devices": 2 + (os.cpu_count() or 1), "trainer.accelerator": "cpu"}, "CPU cores: choose"),
        ({"trainer.max_time": "one hour"}, "max_time.*days"),
        ({"trainer.patience": 0}, "patience"),
        ({"trainer.max_epochs": -1}, "max_epochs"),
        ({"model.options": {"nonsense": 1}}, "nonsense"),
        ({"model.freeze_stages": 7}, "freeze"),
        ({"model.optimizer.lr": -1.0}, "lr"),
    ],
)
def test_impossible_options_are_refused_and_leave_nothing(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message) as error:
        fit(DIGITS, output=tmp_path / "run", **{**MIXED, **options})
    one_line(error)
    assert not (tmp_path / "run").exists()


def test_batch_norm_is_not_synchronised_on_a_cpu(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(ConfigError, match="sync_batchnorm false"), explained():
            torch.nn.SyncBatchNorm(2)(torch.randn(2, 2, 4))
    finally:
        torch.distributed.destroy_process_group()


def test_a_missing_folder_and_a_broken_picture_are_named(tmp_path):
    options = {**MIXED, "model.options": {}, "data.format": "auto", "data.val_split": None, "data.image_size": 8}
    with pytest.raises(DataError, match="no such"):
        fit(DIGITS, output=tmp_path / "run", **options, **{"data.root": str(tmp_path / "nowhere")})
    for name in ("a", "b"):
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        (tmp_path / "data" / "val" / name).mkdir(parents=True)
        for part in ("train", "val"):
            for i in range(16):
                Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "data" / part / name / f"{i}.png")
    (tmp_path / "data" / "train" / "a" / "3.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"3\.png") as error:
        fit(DIGITS, output=tmp_path / "run", **options, **{"data.root": str(tmp_path / "data"), "data.num_workers": 1})
    one_line(error)
    assert not (tmp_path / "run").exists()
