"""``focalnet convert``, as a person types it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from focalnet import weights
from focalnet.card import ModelCard, Preprocessing
from focalnet.cli.convert import convert
from focalnet.errors import CheckpointError, FocalNetError, UnknownName
from focalnet.zoo import create_model
from tests.weights.small import LARGE, ONLY_OURS, classifier

app = typer.Typer()
app.command()(convert)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, FocalNetError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def official(tmp_path: Path) -> Path:
    path = tmp_path / "official.pth"
    torch.save({"model": classifier(LARGE).state_dict(), "epoch": 300}, path)
    return path


def test_to_our_format(official: Path, tmp_path: Path) -> None:
    out = run(official, tmp_path / "ours.safetensors", "--post-norm")

    count = len(classifier(LARGE).state_dict())
    assert 'official.pth: layout microsoft, an unpublished architecture, its section "model"' in out
    assert f"taken       {count} tensors\nunused      0\nmissing     0" in out
    assert weights.read(tmp_path / "ours.safetensors").backbone.post_norm


@pytest.mark.parametrize("layout", ["microsoft", "timm", "huggingface"])
def test_there_and_back_again(official: Path, tmp_path: Path, layout: str) -> None:
    run(official, tmp_path / "theirs.safetensors", "--to", layout, "--post-norm")
    run(tmp_path / "theirs.safetensors", tmp_path / "back.pth", "--to", "microsoft", "--post-norm")

    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]

    expected = classifier(LARGE).state_dict()
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[key], value) for key, value in expected.items())


def test_settings_that_the_file_does_not_store_are_named(tmp_path: Path) -> None:
    model = classifier(LARGE)
    model.card = ModelCard(name="pets", class_names=tuple("abcde"), preprocessing=Preprocessing(image_size=32))
    ours = weights.save(model, tmp_path / "ours.safetensors")
    again = run(ours, tmp_path / "again.safetensors")
    theirs = run(ours, tmp_path / "theirs.pth", "--to", "microsoft")
    assert "does not store" not in again
    listing = theirs[theirs.index("the file does not store") :]
    named = {line.strip() for line in listing.splitlines()[1:]}
    assert named == {"post_norm=True", "preprocessing.image_size=32", "class_names=('a', 'b', 'c', 'd', 'e')"}


def test_settings_that_only_training_knows_are_not_asked_for(tmp_path: Path) -> None:
    model = create_model("focalnet_nano", drop_path_rate=0.2)
    ours = weights.save(model, tmp_path / "ours.safetensors")
    checkpoint = weights.read(ours)
    told = weights.untold(checkpoint, weights.export(checkpoint, tmp_path / "theirs.pth", "microsoft"))
    assert "drop_path_rate" not in " ".join(told)


def test_half_precision_is_only_a_way_of_storing(official: Path, tmp_path: Path) -> None:
    run(official, tmp_path / "half.safetensors", "--post-norm", "--dtype", "float16")

    back, expected = weights.read(tmp_path / "half.safetensors").state_dict, classifier(LARGE).state_dict()
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * official.stat().st_size
    assert all(tensor.dtype == torch.float32 for tensor in back.values())
    assert all(torch.equal(back[key], value.half().float()) for key, value in expected.items())


def test_nothing_is_overwritten_unless_forced(official: Path, tmp_path: Path) -> None:
    target = tmp_path / "ours.safetensors"
    target.write_text("precious")
    with pytest.raises(CheckpointError, match=r"ours\.safetensors: already exists; overwrite it with --force"):
        run(official, target, "--post-norm")
    assert target.read_text() == "precious"
    run(official, target, "--post-norm", "--force")
    assert weights.read(target).num_classes == 5


def test_the_description_for_transformers_is_not_overwritten_either(official: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json: already exists"):
        run(official, tmp_path / "model.safetensors", "--to", "huggingface", "--post-norm")
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"garbage", "not a readable checkpoint"), (None, "cannot be read: No such file")],
)
def test_bad_input_leaves_nothing_behind(tmp_path: Path, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / "in.pth").write_bytes(content)
    before = set(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=says):
        run(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert set(tmp_path.iterdir()) == before


def test_a_shape_that_was_never_published_asks_for_its_norms(official: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="post_norm"):
        run(official, tmp_path / "ours.safetensors")


def test_an_unknown_architecture(official: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match='did you mean "focalnet_tiny_lrf"'):
        run(official, tmp_path / "ours.safetensors", "--architecture", "focalnet_tiny_lr")


def test_a_shape_the_other_library_does_not_have(tmp_path: Path) -> None:
    source = weights.save(classifier(ONLY_OURS["nano"]), tmp_path / "nano.safetensors")
    with pytest.raises(FocalNetError, match="timm's FocalNet supports only patch_size=4"):
        run(source, tmp_path / "out.pth", "--to", "timm")
    assert not (tmp_path / "out.pth").exists()


def test_an_unsettled_setting_is_said_and_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from focalnet.models.variants import VARIANTS

    shrunk = {**VARIANTS["focalnet_large_fl4"].shape, "embed_dim": 4, "depths": (1, 1, 1, 1)}
    monkeypatch.setitem(VARIANTS, "focalnet_large_fl4", type(VARIANTS["focalnet_large_fl4"])(shrunk, num_classes=7))
    torch.save({"model": create_model("focalnet_large_fl4").state_dict()}, tmp_path / "l.pth")

    said = run(tmp_path / "l.pth", tmp_path / "a.safetensors")
    silent = run(tmp_path / "l.pth", tmp_path / "b.safetensors", "--no-normalize-modulator")

    assert "normalize_modulator=True is not settled" in said
    assert "Choose with --normalize-modulator or --no-normalize-modulator" in said
    assert "not settled" not in silent
    assert weights.read(tmp_path / "a.safetensors").backbone.normalize_modulator is True
    assert weights.read(tmp_path / "b.safetensors").backbone.normalize_modulator is False
