"""Networks on the Hugging Face Hub: weights of any known layout are read, our own are written with a README.

``huggingface_hub`` does the transfers, so its cache, environment variables (``HF_TOKEN``, ``HF_ENDPOINT``,
``HF_HUB_OFFLINE``, ...) and log-in (``hf auth login``) apply.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
from huggingface_hub import constants, errors

from focalnet import registry
from focalnet.card import ModelCard
from focalnet.errors import CheckpointError, ConfigError, DownloadError
from focalnet.files import write
from focalnet.models import Model
from focalnet.models.backbone import FocalNet, FocalNetConfig
from focalnet.weights.cache import has_hash, hub_hash, not_writable, quiet, unreachable
from focalnet.weights.checkpoint import describe, save
from focalnet.weights.files import IN_FOLDER

PREFIX = re.compile(r"hf[-_]hub:")  # as timm writes it
_REPOSITORY = re.compile(r"(?P<id>[\w][\w.-]*/[\w][\w.-]*)(?:@(?P<revision>[\w][\w./-]*))?")
_DESCRIPTIONS = ("config.json", "preprocessor_config.json")  # files beside weights that are read
_SAFETENSORS = ("*.safetensors", "*.safetensors.index.json")
_PICKLES = ("*.bin", "*.bin.index.json", "*.pth", "*.pt", "*.ckpt")
_PIPELINES = {
    "classification": "image-classification",
    "multilabel": "image-classification",
    "detection": "object-detection",
    "instance": "image-segmentation",
    "semantic": "image-segmentation",
    "panoptic": "image-segmentation",
}
_PAPER = """@inproceedings{yang2022focal,
  title = {Focal Modulation Networks},
  author = {Yang, Jianwei and Li, Chunyuan and Dai, Xiyang and Yuan, Lu and Gao, Jianfeng},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2022}
}"""


class Repository(NamedTuple):
    """A repository of the Hub, and a branch, tag or commit of it; None for the main branch."""

    id: str
    revision: str | None = None


def repository(name: str) -> Repository | None:
    """The repository that ``owner/name``, ``owner/name@revision`` or ``hf-hub:owner/name`` stands for; None for none.

    Raises:
        ConfigError: after ``hf-hub:`` there is something else.
    """
    match = _REPOSITORY.fullmatch(PREFIX.sub("", name, count=1))
    if match is not None:
        return Repository(match["id"], match["revision"])
    if PREFIX.match(name):
        raise ConfigError(f'"{name}" is not a repository of the Hub: write hf-hub:OWNER/NAME')
    return None


def fetch(wanted: Repository) -> Path:
    """The local folder of a repository's weights and their description; downloads what is not in the cache.

    Raises:
        DownloadError: it could not be downloaded.
        CheckpointError: it holds no weights.
    """
    for kind in (_SAFETENSORS, _PICKLES):
        with _readable(wanted):
            folder = huggingface_hub.snapshot_download(
                wanted.id,
                revision=wanted.revision,
                allow_patterns=[*_DESCRIPTIONS, *kind],
                ignore_patterns=["*/*", "training_args.bin", "optimizer.*", "scheduler.*"],
                local_files_only=unreachable(constants.ENDPOINT) is not None,
            )
            _check_hashes([path for pattern in (*_DESCRIPTIONS, *kind) for path in Path(folder).glob(pattern)], wanted)
        if any(path for pattern in kind for path in Path(folder).glob(pattern)):
            return Path(folder)
    raise CheckpointError(f"{_address(wanted)} holds no weights ({', '.join(IN_FOLDER)}, ...)")


def push_to_hub(
    model: Model[Any, Any] | FocalNet,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "Upload with focalnet",
    token: str | None = None,
) -> str:
    """Uploads weights, configuration and a README; creates the repository if there is none.

    Args:
        model: with a card, whose name, class names and license the README repeats.
        repo_id: ``owner/name``.
        private: whether a new repository is private; None for the owner's default.
        revision: the branch.
        message: of the commit.
        token: default: that of ``hf auth login`` or ``HF_TOKEN``.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: ``repo_id`` is not the name of a repository.
        DownloadError: the Hub did not take it; the message says why.
    """
    wanted = repository(repo_id)
    if wanted is None or PREFIX.match(repo_id) or wanted.revision is not None:
        raise ConfigError(f'"{repo_id}" is not the name of a repository: write OWNER/NAME')
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, repo_id=repo_id)
        if reason := unreachable(constants.ENDPOINT):
            raise DownloadError(f"{_address(wanted)} could not be written: {reason}")
        with _readable(wanted):
            api = huggingface_hub.HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, revision=revision)
    return str(commit.commit_url)


def save_pretrained(model: Model[Any, Any] | FocalNet, folder: str | Path, *, repo_id: str | None = None) -> Path:
    """Writes ``model.safetensors``, ``config.json`` and ``README.md``, as ``push_to_hub`` uploads them.

    Args:
        model: with a card.
        folder: is created if it does not exist.
        repo_id: what the README calls the model; default: the name of the folder.

    Returns:
        The folder.

    Raises:
        CheckpointError: a file cannot be written.
    """
    folder = Path(folder)
    card = model.card or ModelCard(name=folder.name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be created: {error.strerror}; give another folder") from error
    save(model, folder / "model.safetensors")
    write(folder / "config.json", (describe(model.config, card) + "\n").encode(), CheckpointError)
    write(folder / "README.md", readme(model, repo_id or folder.name).encode(), CheckpointError)
    return folder


def readme(model: Model[Any, Any] | FocalNet, name: str) -> str:
    """The README of a repository, from the model's card: metadata of the Hub, what the model is, and how to use it."""
    card = model.card or ModelCard(name=name)
    config = model.config
    task = "feature extraction" if isinstance(config, FocalNetConfig) else config.output
    metadata = huggingface_hub.ModelCardData(
        license=(card.licence or "").lower() or None,
        library_name="focalnet",
        pipeline_tag=_PIPELINES.get(task, "image-feature-extraction"),
        tags=["focalnet", "focal-modulation", task],
    )
    family = "backbone" if isinstance(config, FocalNetConfig) else registry.family_of(config).name
    parameters = sum(p.numel() for p in model.parameters())
    facts = [f"{family}, {task}", f"{parameters / 1e6:.1f} M parameters"]
    if card.class_names:
        shown = ", ".join(card.class_names[:10]) + (", ..." if len(card.class_names) > 10 else "")
        facts.append(f"{len(card.class_names)} classes: {shown}")
    facts += [f"{metric}: {value:g}" for metric, value in card.metrics.items()]
    facts += [f"weights from {card.source}"] * bool(card.source)
    how = card.preprocessing
    facts.append(f"images of {how.image_size} px, mean {list(how.mean)}, std {list(how.std)}")
    if isinstance(config, FocalNetConfig):
        use = f'backbone = focalnet.load("{name}", features_only=True)'
    else:
        use = f'model = focalnet.load("{name}")\nresult = focalnet.Predictor(model)("image.jpg")'
    lines = "\n".join(f"* {fact}" for fact in facts)
    return (
        f"---\n{metadata.to_yaml()}\n---\n\n# {card.name}\n\n"
        f"A focal modulation network for the Python package `focalnet`.\n\n{lines}\n\n"
        f"```python\nimport focalnet\n\n{use}\n```\n\n```bibtex\n{_PAPER}\n```\n"
    )


def _address(wanted: Repository) -> str:
    revision = f" (revision {wanted.revision})" if wanted.revision else ""
    return f"{constants.ENDPOINT}/{wanted.id}{revision}"


def _check_hashes(paths: list[Path], wanted: Repository) -> None:
    """Removes files without the hash that the Hub gave for them; raises ``DownloadError`` if there are any."""
    hashes = [(path, hub_hash(path)) for path in paths]
    wrong = [path for path, expected in hashes if expected is not None and not has_hash(path, expected)]
    for path in wrong:
        for file in (path.resolve(), path):  # the content, and the link to it
            file.unlink(missing_ok=True)
    if wrong:
        raise DownloadError(
            f"{_address(wanted)}: {', '.join(path.name for path in wrong)} did not have the Hub's hash "
            f"and was removed from the cache; run again to download it"
        )


@contextmanager
def _readable(wanted: Repository) -> Iterator[None]:
    """Within it, every error of a transfer becomes one line that names the repository and the way out.

    Raises:
        DownloadError: see above.
    """
    address, host = _address(wanted), constants.ENDPOINT
    try:
        with quiet():
            yield
    except DownloadError:
        raise
    except errors.GatedRepoError as error:
        raise DownloadError(f"{address} is gated: ask for access on its page, and log in (hf auth login)") from error
    except errors.RepositoryNotFoundError as error:
        hint = "check the name, or log in (hf auth login)"
        raise DownloadError(f"there is no {address}, or it is private: {hint}") from error
    except errors.RevisionNotFoundError as error:
        raise DownloadError(f"{host}/{wanted.id} has no revision {wanted.revision}; its page lists them") from error
    except errors.LocalEntryNotFoundError as error:
        cause = _first_line(error.__cause__) if error.__cause__ else "no connection"
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else unreachable(host) or cause
        raise DownloadError(f"{address} is not in the cache and could not be downloaded: {why}") from error
    except Exception as error:  # those of the HTTP library depend on its version
        if isinstance(error, json.JSONDecodeError):
            reason = f"{host} did not answer as the Hub does (a log-in page?); check the network, proxy and HF_ENDPOINT"
        else:
            advice = not_writable(error) if isinstance(error, OSError) else None
            reason = advice or f"{_first_line(error)}; check the connection and your access, and run again"
        raise DownloadError(f"{address}: {reason}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
