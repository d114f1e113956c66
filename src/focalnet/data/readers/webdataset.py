"""WebDataset: tar shards read in sequence, for sets too large for random access.

A sample is ``key.<image suffix>`` and ``key.cls``, its label as text. What differs from the other formats
is written at ``ShardDataset``.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import random
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import IterableDataset, get_worker_info

from focalnet.data import images
from focalnet.data.loader import per_process, random_state_kept, seed_all, world
from focalnet.data.preprocess import Transform
from focalnet.data.readers.source import MAX_BROKEN_IN_A_ROW
from focalnet.errors import DataError, ImageError, require
from focalnet.reading import parse_json, read_text, whole_number
from focalnet.samples import ImageInfo, Sample

logger = logging.getLogger(__name__)

#: Encoded images each worker holds to shuffle among.
SHUFFLE_BUFFER = 2048
_SPLIT_OF_SHARD = re.compile(r"([A-Za-z]+)[-_.]?\d+$")  # "imagenet-train-0001" is of "train"


def splits(root: Path) -> list[str]:
    """Names of the splits: those of ``_info.json``, or of folders of shards, or within the names of the shards."""
    if info := _info(root):
        return sorted(info)
    named = [match[1] for path in root.glob("*.tar") if (match := _SPLIT_OF_SHARD.search(path.stem))]
    return sorted(set(named) | {path.parent.name for path in root.glob("*/*.tar")})


def is_webdataset(root: Path) -> bool:
    """Whether a folder's tar files hold samples with labels beside the images, rather than folders of classes."""
    if _info(root):
        return True
    for path in itertools.chain(root.glob("*.tar"), root.glob("*/*.tar")):
        try:
            with tarfile.open(path) as archive:
                return any(member.name.endswith(".cls") for member in itertools.islice(archive, 16))
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{path}: cannot be read as a tar file: {error}") from error
    return False


def find_shards(root: Path, split: str) -> list[tuple[Path, int]]:
    """The shards of a split and the number of samples in each, which is counted where no ``_info.json`` says it.

    Args:
        root: the folder.
        split: one of ``splits(root)``, or a pattern of file names: ``"train-{0000..0099}.tar"``.
    """
    if listed := _info(root).get(split):
        return [(root / name, count) for name, count in zip(*listed, strict=True)]
    if split.endswith(".tar"):
        paths = [root / name for name in require("webdataset.shardlists", "train").expand_urls(split)]
    else:
        named = [path for path in root.glob("*.tar") if (m := _SPLIT_OF_SHARD.search(path.stem)) and m[1] == split]
        paths = sorted(named) or sorted((root / split).glob("*.tar"))
    return [(path, _count(path)) for path in paths]


def _info(root: Path) -> dict[str, tuple[list[str], list[int]]]:
    """Names and lengths of the shards of each split, from the file that timm's own sets carry, if there is one."""
    for path in (root / "_info.json", root / "info.json"):
        if path.is_file():
            try:
                found = parse_json(read_text(path))["splits"].items()
                listed = {name: (split["filenames"], split["shard_lengths"]) for name, split in found}
                if all(_lists_shards(*lists) for lists in listed.values()):
                    return listed
                raise ValueError
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{path}: does not list splits with filenames and shard_lengths") from error
    return {}


def _lists_shards(names: Any, counts: Any) -> bool:
    """Whether these are names of files, and a number of samples for each."""
    return (
        isinstance(names, list)
        and isinstance(counts, list)
        and len(names) == len(counts)
        and all(isinstance(name, str) and "\0" not in name and not Path(name).is_absolute() for name in names)
        and all(type(count) is int and 0 <= count < 1 << 40 for count in counts)
    )


def _count(path: Path) -> int:
    count, end = 0, b""
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                count += member.name.endswith(".cls")
            if archive.fileobj is not None:
                archive.fileobj.seek(archive.offset)
                end = archive.fileobj.read(tarfile.BLOCKSIZE)
    except Exception as error:  # what a damaged file makes of a decoder and of numbers
        raise DataError(f"{path}: cannot be read as a tar file: {_cut_short(count)}: {_one_line(error)}") from error
    if end != bytes(tarfile.BLOCKSIZE):  # which every tar file ends with
        raise DataError(f"{path}: cannot be read as a tar file: {_cut_short(count)}; copy it again")
    return count


def _cut_short(count: int, of: int | None = None) -> str:
    return f"damaged or cut short after {count}{'' if of is None else f' of {of}'} samples"


def _one_line(error: Exception) -> str:
    return " ".join(str(error.args[0] if error.args else type(error).__name__).split())[:200]


def _read_shards(shards: Sequence[tuple[Path, int]], *, training: bool) -> Iterator[dict[str, Any]]:
    """The samples of shards; ``DataError`` names one that holds fewer than it should.

    In training, one that holds none is only named: ``ShardDataset`` refuses to go on if none of them holds any.
    """
    reading = require("webdataset.tariterators", "train")
    for path, expected in shards:
        count = 0
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
            raise DataError(f"{path}: is not a regular file")
        try:
            with path.open("rb") as stream:
                for sample in reading.group_by_keys(reading.tar_file_expander([{"url": str(path), "stream": stream}])):
                    count += "cls" in sample
                    yield sample
        except Exception as error:  # see _count; what reads the samples does not raise here
            what = f"cannot be read as a tar file of samples: {_cut_short(count, expected)}"
            raise DataError(f"{path}: {what}: {_one_line(error)}") from error
        if count < expected and training and not count:
            logger.warning("%s: %s", path, _cut_short(count, expected))
        elif count < expected:
            raise DataError(f"{path}: {_cut_short(count, expected)}; copy it again")


class ShardDataset(IterableDataset[list["Sample[int] | None"]]):
    """Batches of samples, read shard by shard. Each process and each of its workers reads its own shards.

    Unlike the other formats: the shards are shuffled by ``(seed, epoch)`` and within a worker the samples
    among ``SHUFFLE_BUFFER``, so that the order depends on the number of processes and workers. An epoch of
    training has ``samples // batch_size`` batches in every process: a worker whose shards end early begins
    anew, one with more leaves the rest. Evaluation gives every sample once; processes may differ in length.
    What augmentation does to a sample still depends on seed, epoch and sample alone.

    Args:
        shards: path and number of samples of each.
        class_names: by label; the shards hold numbers only.
        transform: image to tensor.
        batch_size: over all processes.
        num_workers: of the loader; ``self.num_workers`` is what the shards suffice for.
        seed: of the shuffle and the augmentation.
        training: endless and shuffled, or once in order.
        on_error: as for ``ImageDataset``.
    """

    def __init__(
        self,
        shards: Sequence[tuple[Path, int]],
        class_names: Sequence[str],
        transform: Transform,
        *,
        batch_size: int,
        num_workers: int = 0,
        seed: int = 0,
        training: bool = False,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        self.shards = [(path, count) for path, count in shards if count]
        self.rank, self.processes = world()  # now: a worker may not know
        if len(self.shards) < self.processes:
            where = f"{shards[0][0].parent}: " if shards else ""
            raise DataError(f"{where}{len(self.shards)} shards with images are too few for {self.processes} processes")
        self.name, self.class_names, self.transform = str(self.shards[0][0].parent), tuple(class_names), transform
        self.num_workers = min(num_workers, len(self.shards) // self.processes)
        self.batch_size, self.share = batch_size, per_process(batch_size)
        self.readers = max(1, self.num_workers)
        self.seed, self.training, self.on_error = seed, training, on_error
        # Shared with the workers, which outlive an epoch: [epoch, broken images]
        self._shared = torch.zeros(2, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    @property
    def epoch(self) -> int:
        return int(self._shared[0])

    def set_epoch(self, epoch: int) -> None:
        """Chooses the shuffle of the next pass."""
        self._shared[0] = epoch

    def broken(self) -> str:
        """How many images were found broken so far, by any worker; the warnings name them."""
        return f"{int(self._shared[1])} broken images" if self._shared[1] else ""

    def __len__(self) -> int:
        """Batches in an epoch of this process."""
        return sum(self._batches(reader) for reader in range(self.readers))

    def __iter__(self) -> Iterator[list[Sample[int] | None]]:
        worker = get_worker_info()
        reader = worker.id if worker else 0
        samples = self._samples(reader)
        for _ in range(self._batches(reader)):
            with random_state_kept():
                batch = list(itertools.islice(samples, self.share))
            if batch:
                yield batch

    def _mine(self, reader: int, epoch: int) -> list[tuple[Path, int]]:
        shards = list(self.shards)
        if self.training:
            random.Random(f"{self.seed} {epoch}").shuffle(shards)
        return shards[self.rank * self.readers + reader :: self.processes * self.readers]

    def _batches(self, reader: int) -> int:
        if self.training:
            total = sum(count for _, count in self.shards) // self.batch_size
            return len(range(reader, total, self.readers))
        return -(-sum(count for _, count in self._mine(reader, 0)) // self.share)

    def _samples(self, reader: int) -> Iterator[Sample[int] | None]:
        epoch, broken_in_a_row = self.epoch, 0
        for raw in self._raw_samples(reader, epoch):
            try:
                sample = self._decode(raw, epoch)
            except ImageError as error:
                if self.on_error == "raise":
                    raise ImageError(f'{error}; to go on without such images: on_error "skip"') from error
                logger.warning("skipped a broken image: %s", error)
                self._shared[1] += 1
                broken_in_a_row += 1
                if broken_in_a_row == MAX_BROKEN_IN_A_ROW:
                    raise DataError(f"{MAX_BROKEN_IN_A_ROW} broken images in a row, too many to skip") from error
                if not self.training:
                    yield None
            else:
                broken_in_a_row = 0
                yield sample

    def _raw_samples(self, reader: int, epoch: int) -> Iterator[dict[str, Any]]:
        shards = self._mine(reader, epoch)
        if not self.training:
            yield from _read_shards(shards, training=False)
            return
        order = random.Random(f"{self.seed} {epoch} {self.rank} {reader}")
        shuffle = require("webdataset", "train").shuffle(SHUFFLE_BUFFER, initial=SHUFFLE_BUFFER, rng=order)
        while True:  # each pass by itself, so that no sample comes twice before all have come once
            samples = shuffle(_read_shards(shards, training=True))
            first = next(samples, None)
            if first is None:
                raise DataError(f"{shards[0][0]} and the shards read with it hold no samples")
            yield first
            yield from samples

    def _decode(self, raw: dict[str, Any], epoch: int) -> Sample[int]:
        name = f"{Path(raw['__url__']).name}/{raw['__key__']}"
        content = next((raw[suffix] for suffix in raw if f".{suffix}" in images.SUFFIXES), None)
        if content is None or "cls" not in raw:
            raise DataError(f"{name}: has no {'image' if content is None else 'label (.cls)'}")
        text = raw["cls"].decode(errors="replace").strip()
        label = whole_number(text)
        if label is None or label >= len(self.class_names):
            raise DataError(f"{name}: label {text[:80]!r} does not fit the class map's {len(self.class_names)} classes")
        image = images.read(content, name)
        if self.training:
            identity = hashlib.blake2b(name.encode(), digest_size=8).digest()
            seed_all(self.seed, epoch, int.from_bytes(identity, "big"))
        return Sample(self.transform(image), label, ImageInfo(name, (image.height, image.width)))
