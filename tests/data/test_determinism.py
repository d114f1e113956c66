"""A sample is a function of (seed, epoch, index), a batch of (seed, epoch): whatever ran before, and wherever."""

from __future__ import annotations

import contextlib
import itertools
import random
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focalnet.data import Augmentation, ClassificationData
from focalnet.data import loader as loading
from focalnet.data.loader import EpochBatches, random_state_kept, seed_all
from focalnet.errors import DataError

LIGHT = Augmentation(crop="padded", policy=None, color_jitter=0, erase_prob=0.5)


def data(root: Path, **options) -> ClassificationData:
    options = {"image_size": 12, "batch_size": 6, "num_workers": 0, **options}
    module = ClassificationData(root, **options)
    module.setup("fit")
    return module


def epochs(module: ClassificationData, count: int = 2) -> list[dict]:
    loader, given = module.train_dataloader(), []
    for epoch in range(count):
        loader.batch_sampler.set_epoch(epoch)
        given += list(loader)
    return given


def same(ours: dict, theirs: dict) -> bool:
    return ours.paths == theirs.paths and torch.equal(ours.images, theirs.images)


def in_process(monkeypatch: pytest.MonkeyPatch, rank: int, processes: int) -> None:
    monkeypatch.setattr(loading, "world", lambda: (rank, processes))


# --- samples


def test_a_seed_draws_the_same_and_leaves_no_trace():
    def draw() -> tuple:
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw(), draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    first = draw()
    with random_state_kept():
        seed_all(7, 0, 3)
        inside = draw()
    with contextlib.suppress(KeyError), random_state_kept():
        raise KeyError(draw())
    assert (first, draw()) == expected
    with random_state_kept():
        seed_all(7, 0, 3)
        assert draw() == inside
        for other in ((8, 0, 3), (7, 1, 3), (7, 0, 4), (7, 3, 0)):
            seed_all(*other)
            assert len(set(draw()) & set(inside)) == 0


@pytest.mark.parametrize("augmentation", [Augmentation(), LIGHT, Augmentation(policy="trivial")])
def test_a_sample_depends_on_seed_epoch_and_index_alone(folder: Path, augmentation: Augmentation):
    samples = data(folder, augmentation=augmentation, seed=1).samples["train"]
    other_seed = data(folder, augmentation=augmentation, seed=2).samples["train"]
    for index in range(6):
        first = samples[3, index].image
        samples[3, index + 1], random.random(), torch.rand(3), np.random.rand(3)
        torch.testing.assert_close(samples[3, index].image, first, rtol=0, atol=0)
    for others in ([samples[4, i] for i in range(6)], [other_seed[3, i] for i in range(6)]):
        assert any(not torch.equal(samples[3, i].image, other.image) for i, other in enumerate(others))


def test_an_index_alone_is_epoch_0(folder: Path):
    samples = data(folder).samples["train"]
    torch.testing.assert_close(samples[5].image, samples[0, 5].image)


# --- batches


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(folder: Path, workers: int):
    ours, theirs = epochs(data(folder)), epochs(data(folder, num_workers=workers))
    assert len(ours) == len(theirs) == 8
    assert all(map(same, ours, theirs))


def test_epochs_and_seeds_differ_in_order(folder: Path):
    both = epochs(data(folder))
    first, second = both[:4], both[4:]
    order = [[path for batch in batches for path in batch.paths] for batches in (first, second)]
    other = [path for batch in epochs(data(folder, seed=5), 1) for path in batch.paths]
    assert sorted(order[0]) == sorted(order[1]) == sorted(other)
    assert len({tuple(order[0]), tuple(order[1]), tuple(other)}) == 3


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_same_batches(folder: Path, processes: int, monkeypatch: pytest.MonkeyPatch):
    alone = epochs(data(folder))
    shares = []
    for rank in range(processes):
        in_process(monkeypatch, rank, processes)
        shares.append(epochs(data(folder)))
    assert {len(share) for share in shares} == {len(alone)}
    for batch, *parts in zip(alone, *shares, strict=True):
        together = {path: image for part in parts for path, image in zip(part.paths, part.images, strict=True)}
        assert sorted(together) == sorted(batch.paths)
        for path, image in zip(batch.paths, batch.images, strict=True):
            torch.testing.assert_close(together[path], image, rtol=0, atol=0)


@settings(max_examples=200)
@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 8))
def test_evaluation_sees_every_picture_once(size: int, share: int, processes: int):
    per_rank = []
    for rank in range(processes):
        with pytest.MonkeyPatch.context() as patch:
            in_process(patch, rank, processes)
            batches = EpochBatches(size, share * processes, seed=0, training=False)
            try:
                per_rank.append(list(batches))
            except DataError:  # too few for so many processes
                assert size < processes
                return
            assert len(per_rank[-1]) == len(batches)
    assert len({len(batches) for batches in per_rank}) == 1
    flat = [pair for batches in per_rank for batch in batches for pair in batch]
    assert sorted(flat) == [(0, index) for index in range(size)]
    assert all(1 <= len(batch) <= max(share, 2) for batches in per_rank for batch in batches)
    assert share > 1 or sum(len(batch) == 2 for batch in per_rank[0]) == (size % processes > 0)


def test_a_batch_size_that_does_not_divide_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch):
    in_process(monkeypatch, 0, 4)
    with pytest.raises(DataError, match=r"batch_size=6 .* 4 processes"):
        data(folder).train_dataloader()


# --- resuming


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_epoch_goes_on(folder: Path, workers: int):
    whole = epochs(data(folder))
    loader = data(folder, num_workers=workers).train_dataloader()
    loader.batch_sampler.set_epoch(1)
    first = list(itertools.islice(loader, 1))
    state = loader.state_dict()

    resumed = data(folder, num_workers=workers).train_dataloader()
    resumed.load_state_dict(state)
    resumed.batch_sampler.set_epoch(1)
    rest = list(resumed)
    assert len(first + rest) == 4
    assert all(map(same, first + rest, whole[4:]))
    assert resumed.state_dict() == {"epoch": 1, "batches": 4}
    assert len(list(resumed)) == 4  # the next pass is whole again


def test_a_state_of_another_epoch_is_left_alone(folder: Path):
    loader = data(folder).train_dataloader()
    loader.load_state_dict({"epoch": 0, "batches": 4})
    loader.batch_sampler.set_epoch(1)
    assert len(list(loader)) == 4


class Recorder(pl.LightningModule):
    """Learns nothing of use; writes down what it is given."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.stop_at, self.seen = stop_at, []

    def training_step(self, batch: dict, batch_index: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, batch_index, batch.paths, batch.images.sum().item()))
        if self.global_step == self.stop_at:
            raise KeyboardInterrupt
        return self.weight * batch.images.mean()

    def validation_step(self, batch: dict, batch_index: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")  # Lightning's, about few workers, the folder it resumes from, and torch's changes
@pytest.mark.parametrize("stop_at", [2, 6, 8])
def test_lightning_resumes_within_an_epoch(folder: Path, tmp_path: Path, stop_at: int):
    """A run broken off before step ``stop_at``, with a checkpoint after every step, gets the batches it missed."""

    def fit(module: Recorder, checkpoint: Path | None = None) -> list[tuple]:
        keep = pl.callbacks.ModelCheckpoint(tmp_path, "last", every_n_train_steps=1, enable_version_counter=False)
        trainer = pl.Trainer(
            max_epochs=3,
            accelerator="cpu",
            logger=False,
            callbacks=[keep],
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            log_every_n_steps=1,
        )
        trainer.fit(module, datamodule=data(folder), ckpt_path=checkpoint)
        return module.seen

    whole = fit(Recorder())
    assert len(whole) == 12
    broken_off = Recorder(stop_at)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(broken_off)
    resumed = fit(Recorder(), tmp_path / "last.ckpt")
    assert broken_off.seen[:stop_at] + resumed == whole
