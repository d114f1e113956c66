"""Repositories of the Hugging Face Hub, on a local stand-in."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants

import focalnet
from focalnet import weights
from focalnet.cli.main import main
from focalnet.errors import CheckpointError, ConfigError, DownloadError
from focalnet.weights import cache as cache_module
from focalnet.weights import hub
from tests.inference.small import classifier, noise
from tests.weights.hub_server import COMMIT, serving


class Hub:
    """The stand-in: its repositories, those that are gated, its address, and what was asked."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.broken: dict[str, str] = {}
        self.address = ""
        self.asked: list[str] = []


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    found = Hub()
    with serving(found.repositories, found.gated, found.broken) as (found.address, found.asked):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", found.address)  # what HF_ENDPOINT sets
        template = found.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", "hf_nothing")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield found


def files_of(model: Any, folder: Path) -> dict[str, bytes]:
    focalnet.save_pretrained(model, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("prefix", ["", "hf-hub:", "hf_hub:"])
@pytest.mark.parametrize("revision", ["", "@main"])
def test_a_repository_is_loaded_by_its_name(prefix: str, revision: str, server: Hub, tmp_path: Path) -> None:
    model = classifier()
    server.repositories["someone/small-net.v1"] = files_of(model, tmp_path / "model") | {
        "checkpoint-5/model.safetensors": b"not this one",
        "pytorch_model.bin": b"nor this one",
    }
    loaded = focalnet.load(f"{prefix}someone/small-net.v1{revision}")
    assert same(loaded, model)
    assert loaded.card == model.card
    assert not any("pytorch_model" in path or "checkpoint-5" in path for path in server.asked if "resolve" in path)


def test_the_cache_serves_what_was_loaded_before(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repositories["someone/net"] = files_of(classifier(), tmp_path / "model")
    focalnet.load("someone/net")
    monkeypatch.setattr(hub, "unreachable", lambda _: "no connection (Name or service not known)")
    assert focalnet.load("someone/net")
    with pytest.raises(DownloadError, match=r"someone/other is not in the cache .*: no connection \(Name or service"):
        focalnet.load("hf-hub:someone/other")
    with pytest.raises(DownloadError, match=r"someone/net could not be written: no connection"):
        classifier().push_to_hub("someone/net")


def test_pickles_of_other_libraries_are_read(server: Hub, tmp_path: Path) -> None:
    model = classifier()
    torch.save({"model": model.state_dict()}, tmp_path / "pytorch_model.bin")
    server.repositories["someone/theirs"] = {
        "pytorch_model.bin": (tmp_path / "pytorch_model.bin").read_bytes(),
        "training_args.bin": b"code of a training script",
    }
    backbone = focalnet.load("someone/theirs", post_norm=False)
    assert same(backbone, model)
    server.repositories["someone/empty"] = {"README.md": b"# nothing"}
    with pytest.raises(CheckpointError, match=r"/someone/empty holds no weights \(model\.safetensors, "):
        focalnet.load("someone/empty")


REFUSED = {
    "someone/nothing": r"there is no .*/someone/nothing, or it is private: check the name, or log in \(hf auth login\)",
    "someone/gated": r"/someone/gated is gated: ask for access on its page, and log in",
    "someone/net@v9": r"/someone/net has no revision v9; its page lists them",
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_line_says_why_a_repository_cannot_be_read(
    name: str, server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.repositories["someone/net"] = {}
    server.gated.add("someone/gated")
    with pytest.raises(DownloadError, match=REFUSED[name]) as caught:
        focalnet.load(f"hf-hub:{name}")
    assert "\n" not in str(caught.value)
    both = rf"{name}: cannot be read: No such file or directory; nor from the Hugging Face Hub: .*{REFUSED[name]}"
    with pytest.raises(CheckpointError, match=both):
        focalnet.load(name)
    noise().save(tmp_path / "image.png")
    assert main(["predict", str(tmp_path / "image.png"), "--model", name]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1


BROKEN = {
    "error": r"someone/net is not in the cache and could not be downloaded: .*500",
    "page": r"did not answer as the Hub does \(a log-in page\?\); check the network, proxy and HF_ENDPOINT",
    "hang up": r"someone/net: .*; check the connection and your access, and run again",
    "damage": r"config\.json, model\.safetensors did not have the Hub's hash and was removed from the cache",
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_server_leaves_nothing_broken(fault: str, server: Hub, tmp_path: Path) -> None:
    model = classifier()
    server.repositories["someone/net"] = files_of(model, tmp_path / "model")
    server.broken["someone/net"] = fault
    for _ in range(2):
        with pytest.raises(DownloadError, match=BROKEN[fault]) as caught:
            focalnet.load("hf-hub:someone/net")
        assert "\n" not in str(caught.value)
    server.broken.clear()
    assert same(focalnet.load("hf-hub:someone/net"), model)


def test_errors_of_the_cache_and_of_a_push_are_one_line(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.repositories["someone/net"] = files_of(classifier(), tmp_path / "model")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file/x: cannot be created: Not a directory; give another folder"):
        classifier().save_pretrained(tmp_path / "file" / "x")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match=r"/file cannot be written \(.*\); set HF_HUB_CACHE to a folder"):
        focalnet.load("hf-hub:someone/net")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", full)
    with pytest.raises(DownloadError, match=r"someone/net: no space left in .*HF_HUB_CACHE"):
        focalnet.load("hf-hub:someone/net")


def test_names_of_repositories() -> None:
    assert hub.repository("a/b") == ("a/b", None)
    assert hub.repository("hf-hub:a/b@1.0/x") == ("a/b", "1.0/x")
    for path in ("a/b/c", "./a", "/a/b", "a", "../a", "a/b@", ".a/b"):
        assert hub.repository(path) is None
    with pytest.raises(ConfigError, match=r'"hf-hub:a" is not a repository of the Hub: write hf-hub:OWNER/NAME'):
        focalnet.load("hf-hub:a")
    with pytest.raises(ConfigError, match="is not the name of a repository: write OWNER/NAME"):
        classifier().push_to_hub("mine")


def test_a_file_comes_before_a_repository_of_its_name(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = classifier()
    weights.save(model, tmp_path / "model.safetensors")
    (tmp_path / "someone").mkdir()
    (tmp_path / "model.safetensors").rename(tmp_path / "someone" / "net")
    monkeypatch.chdir(tmp_path)
    assert same(focalnet.load("someone/net"), model)
    with pytest.raises(CheckpointError, match=r"runs/model\.safetensors: cannot be read"):
        focalnet.load("runs/model.safetensors")
    assert not server.asked


def test_a_model_is_uploaded_with_its_readme(server: Hub) -> None:
    model = classifier()
    assert model.card is not None
    model.card = dataclasses.replace(model.card, name="small", licence="Apache-2.0", metrics={"top1": 91.5})
    address = model.push_to_hub("someone/small")
    assert address == f"{server.address}/someone/small/commit/{COMMIT}"
    files = server.repositories["someone/small"]
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    assert same(focalnet.load("someone/small"), model)
    described = json.loads(files["config.json"])
    assert described["kind"] == "classifier"
    assert described["card"]["name"] == "small"
    _, metadata, text = files["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(metadata) == {
        "license": "apache-2.0",
        "library_name": "focalnet",
        "pipeline_tag": "image-classification",
        "tags": ["focalnet", "focal-modulation", "classification"],
    }
    assert "# small\n" in text
    assert "* top1: 91.5\n" in text
    assert 'focalnet.load("someone/small")' in text
    assert "yang2022focal" in text


def test_a_backbone_is_saved_and_read_back(tmp_path: Path) -> None:
    backbone = focalnet.create_model("focalnet_nano", features_only=True)
    folder = backbone.save_pretrained(tmp_path / "backbone")
    assert same(focalnet.load(folder, features_only=True), backbone)
    assert 'focalnet.load("backbone", features_only=True)' in (folder / "README.md").read_text()


def test_a_host_without_a_name_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module.urllib.request, "getproxies", dict)
    assert "no connection (" in str(cache_module.unreachable("https://nowhere.invalid/x"))
    assert cache_module.unreachable("http://127.0.0.1:1/x") is None
    monkeypatch.setattr(cache_module.urllib.request, "getproxies", lambda: {"https": "http://proxy"})
    assert cache_module.unreachable("https://nowhere.invalid/x") is None


def test_the_library_of_the_hub_is_quiet_from_its_first_use() -> None:
    code = (
        "import logging, huggingface_hub\n"
        "from focalnet.weights.cache import quiet\n"
        "with quiet():\n"
        "    huggingface_hub.snapshot_download\n"
        "    print(logging.getLogger('huggingface_hub._snapshot_download').getEffectiveLevel())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(found) == logging.ERROR
