"""The files that a run goes on from, ``last.ckpt`` and the one before it: sealed when written, checked before use.

The seal is the SHA-256 of all that comes before it. It is the comment at the end of a zip file, which a checkpoint is:
``torch.load`` and every other program read it as without. Files of earlier versions have none; of those, the checksums
within the zip file are checked.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from focalnet import files
from focalnet.errors import CheckpointError, TrainingError

if TYPE_CHECKING:
    from focalnet.training.run_folder import RunFolder

log = logging.getLogger(__name__)

#: Before the hash, in hexadecimal digits.
MARK = b"sha256:"
SEAL_SIZE = len(MARK) + 64
#: The end of a zip file without a comment: this, 18 more bytes, of which the last two are the comment's length.
ZIP_END = b"PK\x05\x06"

#: What a checkpoint of a run holds at least.
PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks")


class ResumePoint(NamedTuple):
    """A checked checkpoint.

    Attributes:
        path: its file.
        digest: SHA-256 of its content.
        options: every option of its run, as YAML; None in files of earlier versions.
        epochs: complete ones.
        batches: done of the epoch after them.
    """

    path: Path
    digest: str
    options: str | None
    epochs: int
    batches: int

    def __str__(self) -> str:
        if self.batches:
            return f"{self.path} keeps the run up to batch {self.batches} of epoch {self.epochs + 1}"
        return f"{self.path} keeps the last complete epoch"


def read_resume_point(path: Path) -> ResumePoint:
    """Checks a checkpoint.

    Raises:
        CheckpointError: it is missing or damaged; the message says how.
    """
    try:
        digest = _digest(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        loops = content["loops"]["fit_loop"]
        epoch, batch = (loops[name]["current"] for name in ("epoch_progress", "epoch_loop.batch_progress"))
        batches = batch["processed"] if epoch["ready"] > epoch["processed"] else 0
        whole = all(part in content for part in PARTS)
        point = ResumePoint(path, digest, content.get("options"), epoch["processed"], batches)
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from error
    except Exception as error:  # whatever unpickling makes of bytes that are none of ours
        raise CheckpointError(f"{path} is not a checkpoint of a run") from error
    if not whole:
        raise CheckpointError(f"{path} is not a checkpoint of a run")
    return point


def choose_resume_point(last: Path, previous: Path) -> ResumePoint | None:
    """The newest whole checkpoint of a run, None where it has none at all; says aloud if it is not the last one.

    Raises:
        CheckpointError: none is whole.
    """
    if not last.exists() and not previous.exists():
        return None
    try:
        return read_resume_point(last)
    except CheckpointError as error:
        fault = str(error)
    try:
        point = read_resume_point(previous)
    except CheckpointError as error:
        raise CheckpointError(
            f"{fault}, and {error}: put back a copy of one of them, or --force to start afresh"
        ) from error
    log.warning("%s: going on from %s, the one before it", fault, previous)
    return point


def _digest(path: Path) -> str:
    """The SHA-256 of a checkpoint's content, which is what it was when it was written.

    Raises:
        CheckpointError: it is not.
    """
    digest = hashlib.sha256()
    size = path.stat().st_size
    if size == 0:
        raise CheckpointError(f"{path} is empty")
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise CheckpointError(f"{path} is not a checkpoint of a run")
        file.seek(max(0, size - SEAL_SIZE))
        seal = file.read()
        sealed = seal.startswith(MARK)
        file.seek(0)
        left = size - SEAL_SIZE if sealed else size
        while left:
            piece = file.read(min(left, 1 << 24))
            digest.update(piece)
            left -= len(piece) or left
    if sealed and digest.hexdigest().encode() == seal[len(MARK) :]:
        return digest.hexdigest()
    bare = seal[-22:-18] == ZIP_END and seal[-2:] == b"\0\0"
    if sealed or not bare or not _has_right_checksums(path):
        raise CheckpointError(f"{path} is cut short or damaged")
    return digest.hexdigest()


def _has_right_checksums(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError):
        return False


class AtomicCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoint files, whole or not there, sealed, and the last one with its predecessor beside it.

    Args:
        folder: of the run.
        options: every option of the run, as YAML.
        from_previous: the last checkpoint that is there is damaged: it is no predecessor.
    """

    def __init__(self, folder: RunFolder, options: str, *, from_previous: bool = False) -> None:
        self.folder, self.options, self.keeps = folder, options, not from_previous

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        self.folder.check()
        buffer = io.BytesIO()
        torch.save({**checkpoint, "options": self.options}, buffer)
        buffer.seek(-2, os.SEEK_END)
        buffer.write(SEAL_SIZE.to_bytes(2, "little"))  # the length of the comment
        with buffer.getbuffer() as content:  # given back where writing fails, or Python warns later
            seal = MARK + hashlib.sha256(content).hexdigest().encode()
        buffer.write(seal)
        with files.atomic(path, TrainingError) as part, buffer.getbuffer() as content:
            part.write_bytes(content)
            if Path(path).resolve() == self.folder.checkpoint.resolve():
                self._keep_previous()
        self.keeps = True

    def _keep_previous(self) -> None:
        """Makes the last checkpoint the previous one, too; its name is then taken by the new one."""
        last, previous = self.folder.checkpoint, self.folder.previous
        if not self.keeps or not last.exists():
            return
        link = previous.with_name(f".{previous.name}.part")
        link.unlink(missing_ok=True)
        try:
            os.link(last, link)
        except OSError:  # a file system without links
            os.replace(last, previous)
        else:
            os.replace(link, previous)
