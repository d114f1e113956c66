"""Checkpoints as tools write them: sections, prefixes, objects beside tensors, shards, folders; and hostile ones."""

from __future__ import annotations

import argparse
import collections
import datetime
import functools
import json
import os
import pathlib
import pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models._features import FeatureListNet
from timm.models.focalnet import FocalNet as TimmFocalNet
from torch import Tensor

from focalnet import weights, zoo
from focalnet.card import ModelCard, Preprocessing
from focalnet.data.preprocess import preprocess
from focalnet.errors import CheckpointError
from focalnet.runtime.header import FORMATS
from focalnet.weights import pickles
from focalnet.weights.checkpoint import HEADER, describe
from focalnet.weights.files import read_tensors
from tests.weights.small import PLAIN, classifier

MODEL = classifier(PLAIN)
STATE = MODEL.state_dict()
OTHER = {key: torch.zeros_like(value) for key, value in STATE.items()}


def prefixed(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def loads(path: Path) -> bool:
    found = weights.read(path, post_norm=False).state_dict
    return found.keys() == STATE.keys() and all(torch.equal(found[key], value) for key, value in STATE.items())


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize(
    "content",
    [
        {"epoch": 3, "model_state_dict": STATE, "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(2)}}}},
        {"module": STATE, "global_steps": 3, "lr_scheduler": None},
        {"module": prefixed("module."), "global_steps": 3},
        {"whatever": STATE, "scaler": {"scale": torch.ones(1)}},
        {"checkpoint": {"net": {"best": STATE}}},
        {"ema": {"decay": 0.999, "shadow_params": list(STATE.values())}, "model": STATE},
        {"ema": {"shadow": STATE}, "model": OTHER},
        {"params": OTHER, "params_ema": STATE},
        {"state_dict": STATE, "ema_state_dict": prefixed("module.", OTHER), "message_hub": {}},  # mmengine swaps them
        {"state_dict": OTHER, "ema_state_dict": STATE},
        {"model": STATE, "student": OTHER, "teacher": OTHER},
        {"state_dict": {**prefixed("model.", OTHER), **prefixed("ema_model.module.")}},
        {"state_dict": {**prefixed("network.", OTHER), **prefixed("average.module.")}},
        *({"state_dict": prefixed(p), "epoch": 1} for p in ("net.", "backbone.", "encoder.", "classifier.", "a.b.c.")),
        {"state_dict": {**prefixed("backbone."), "loss.weight": torch.ones(3)}},
    ],
)
def test_the_one_focalnet_is_found_whatever_it_is_called(tmp_path: Path, content: Any) -> None:
    assert loads(saved(tmp_path / "x.pth", content))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("blocks.0.", "blocks.0._orig_mod."),
        ("blocks.0.", "_fsdp_wrapped_module.blocks.0._checkpoint_wrapped_module."),
        ("patch_embed.", "patch_embed._orig_mod."),
    ],
)
def test_wrappers_may_be_at_any_depth(tmp_path: Path, before: str, after: str) -> None:
    state = {f"module.{key.replace(before, after)}": value for key, value in STATE.items()}
    assert loads(saved(tmp_path / "x.pth", {"model": state}))


def test_the_backbone_of_timm_s_features_is_read(tmp_path: Path) -> None:
    theirs = TimmFocalNet(embed_dim=8, depths=(1, 1, 1, 1), focal_levels=(1, 1, 1, 1)).eval()
    features = FeatureListNet(theirs, out_indices=(0, 1, 2, 3), flatten_sequential=True).eval()
    assert any(key.startswith("layers_0.") for key in features.state_dict())
    path = saved(tmp_path / "x.pth", features.state_dict())
    model = zoo.load(str(path), features_only=True, post_norm=False).eval()
    image = torch.randn(1, 3, 64, 64)
    for found, expected in zip(model(image).values(), features(image), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64])
@pytest.mark.parametrize("native", [False, True])
def test_weights_of_other_numbers_are_refused(tmp_path: Path, dtype: torch.dtype, native: bool) -> None:
    state = STATE | {"head.weight": STATE["head.weight"].to(dtype)}
    path = saved(tmp_path / "x.pth", state)
    if native:
        header = {HEADER: describe(MODEL.config, ModelCard(name="mine"))}
        save_file(state, tmp_path / "x.safetensors", metadata=header)
        path = tmp_path / "x.safetensors"
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(CheckpointError, match=rf"1 of its weights are of {kind}, e\.g\. head\.weight"):
        weights.read(path, post_norm=False)


@pytest.mark.parametrize(
    ("names", "way_out"),
    [
        (("lora_A.default.weight", "lora_B.default.weight", "base_layer.weight"), "merge_and_unload"),
        (("parametrizations.weight.original",), "remove_parametrizations"),
        (("weight_g", "weight_v"), "remove_weight_norm"),
    ],
)
def test_weights_that_a_wrapper_computes_are_refused(tmp_path: Path, names: tuple[str, ...], way_out: str) -> None:
    state = dict(STATE)
    weight = state.pop("layers.0.blocks.0.mlp.fc1.weight")
    state |= {f"layers.0.blocks.0.mlp.fc1.{name}": weight for name in names}
    with pytest.raises(CheckpointError, match=way_out):
        weights.read(saved(tmp_path / "x.pth", state), post_norm=False)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"student": STATE, "teacher": OTHER}, "student, teacher"),
        ({"state_dict": {**prefixed("student."), **prefixed("teacher.", OTHER)}}, r"student\., teacher\."),
    ],
)
def test_several_focalnets_are_named_and_none_is_guessed(tmp_path: Path, content: Any, names: str) -> None:
    with pytest.raises(CheckpointError, match=rf"several .*\({names}\)"):
        weights.read(saved(tmp_path / "x.pth", content), post_norm=False)


class Options(dict):  # type: ignore[type-arg]
    """Options of a training script, as yacs and mmengine have them."""


class Kind(int):
    """A value of its own type, as members of enumerations are."""


Options.__module__ = Kind.__module__ = "not.installed"

HARMLESS = {
    "a NumPy number": np.float64(91.2),
    "an array": np.arange(3),
    "a path": pathlib.PurePosixPath("runs/1"),
    "a date": datetime.datetime(2026, 1, 1),
    "a defaultdict": collections.defaultdict(list, {"loss": [1.0]}),
    "a deque": collections.deque([1, 2]),
    "a Namespace": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("x")),
    "a SimpleNamespace": types.SimpleNamespace(lr=0.1),
    "a function": torch.nn.functional.gelu,
    "a partial": functools.partial(int, base=2),
    "a type": int,
    "a set with an object": {pathlib.PurePosixPath("x")},
    "an object as key": {pathlib.PurePosixPath("x"): 1},
}


@pytest.mark.parametrize("kind", HARMLESS)
@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}])
def test_objects_beside_the_tensors_are_passed_over(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    assert loads(saved(tmp_path / "x.pth", {"model": STATE, "beside": HARMLESS[kind]}, **options))


def test_classes_of_packages_that_are_not_installed_are_passed_over(tmp_path: Path) -> None:
    package, module = types.ModuleType("not"), types.ModuleType("not.installed")
    module.Options, module.Kind = Options, Kind  # type: ignore[attr-defined]
    sys.modules.update({"not": package, "not.installed": module})
    try:
        path = saved(tmp_path / "x.pth", {"model": STATE, "cfg": Options(a=Options(b=Kind(1))), "list": [Kind(2)]})
    finally:
        del sys.modules["not"], sys.modules["not.installed"]
    assert loads(path)
    assert "not.installed" not in sys.modules


def test_a_whole_pickled_module_is_read_without_its_class(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pth", {"model": torch.nn.DataParallel(MODEL)})
    assert loads(path)
    assert loads(saved(tmp_path / "y.pth", MODEL))


class Runs:
    """Pickles to a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("call", ["system", "eval", "exec", "subprocess", "getattr", "write_text", "partial"])
def test_hostile_files_run_nothing(tmp_path: Path, legacy: bool, call: str) -> None:
    mark = tmp_path / "was_run"
    code = f"open({str(mark)!r}, 'w').close()"
    hostile = {
        "system": Runs(os.system, f"touch {mark}"),
        "eval": Runs(eval, code),
        "exec": Runs(exec, code),
        "subprocess": Runs(subprocess.check_call, ["touch", str(mark)]),
        "getattr": Runs(getattr, pathlib.Path(mark), "touch"),
        "write_text": Runs(pathlib.Path.write_text, mark, "x"),
        "partial": Runs(functools.partial, Runs(eval, code)),
    }[call]
    path = saved(tmp_path / "x.pth", {"model": STATE, "x": hostile}, _use_new_zipfile_serialization=not legacy)
    if call in ("getattr", "write_text"):
        assert loads(path)  # passed over
    else:
        with pytest.raises(CheckpointError, match="refused because it holds Python code"):
            weights.read(path, post_norm=False)
    assert not mark.exists()
    if call in ("system", "eval", "exec", "subprocess"):  # the file is as dangerous as the test claims
        torch.load(path, weights_only=False)
        assert mark.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        # What setattr would change: of a function, of classes.
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__(K\x01t\x73\x86b.",
        b"\x80\x02ccollections\nOrderedDict\nN}X\x05\x00\x00\x00itemsK\x01\x73\x86b.",
        b"\x80\x02cargparse\nNamespace\nN}X\x01\x00\x00\x00xK\x01\x73\x86b.",
        b"\x80\x02ctorch.storage\nUntypedStorage\nN}X\x01\x00\x00\x00xK\x01\x73\x86b.",
    ],
)  # fmt: skip
def test_a_pickle_changes_no_function_and_no_class(opcodes: bytes) -> None:
    import io

    before = torch._utils._rebuild_tensor_v2.__defaults__, vars(argparse.Namespace).keys()
    with pytest.raises((pickle.UnpicklingError, TypeError, AttributeError)):
        pickles._load(io.BytesIO(opcodes))
    assert (torch._utils._rebuild_tensor_v2.__defaults__, vars(argparse.Namespace).keys()) == before
    assert not hasattr(torch.UntypedStorage, "x")


# --- shards and folders


def sharded(folder: Path, suffix: str = ".safetensors") -> Path:
    folder.mkdir()
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    keys, index = list(STATE), {}
    for number, part in enumerate((keys[: len(keys) // 2], keys[len(keys) // 2 :]), 1):
        name = f"{stem}-{number:05d}-of-00002{suffix}"
        tensors = {key: STATE[key].contiguous() for key in part}
        save_file(tensors, folder / name) if suffix == ".safetensors" else torch.save(tensors, folder / name)
        index |= dict.fromkeys(part, name)
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_are_read_together(tmp_path: Path, suffix: str) -> None:
    folder = sharded(tmp_path / "x", suffix)
    index = next(folder.glob("*.index.json"))
    one = next(folder.glob("*-00001-*"))
    assert loads(folder)
    assert loads(index)
    assert loads(one)
    index.unlink()
    assert loads(one)
    next(folder.glob("*-00002-*")).unlink()
    with pytest.raises(CheckpointError, match=r"is one of 2 shards, of which .*-00002-of-00002.* is not beside it"):
        weights.read(one, post_norm=False)


def test_an_index_that_was_cut_short_names_all_shards(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "x")
    index = next(folder.glob("*.index.json"))
    first = dict(list(json.loads(index.read_text())["weight_map"].items())[:1])
    index.write_text(json.dumps({"weight_map": first}), encoding="utf-8-sig")
    assert loads(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "x")
    second = folder / "model-00002-of-00002.safetensors"
    key = next(iter(STATE))
    part = list(STATE)[len(STATE) // 2 :]
    save_file({name: STATE[name].contiguous() for name in (*part, key)}, second)
    with pytest.raises(CheckpointError, match=f'"{key}" is in several of its 2 shards'):
        weights.read(folder, post_norm=False)


@pytest.mark.parametrize(
    "content",
    [
        *("{", "{}", '{"weight_map": {"a": "../other.bin"}}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": ""}}'),
        "[" * 10**5,
    ],
)
def test_an_index_that_names_no_shards_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="is not an index of shards"):
        weights.read(tmp_path)


def test_folders_of_runs_are_read_by_their_one_weights_file(tmp_path: Path) -> None:
    for name in ("deepspeed/mp_rank_00_model_states.pt", "mine/epoch=3.ckpt"):
        (tmp_path / name).parent.mkdir()
        saved(tmp_path / name, {"module": STATE})
        assert loads((tmp_path / name).parent)
    saved(tmp_path / "mine/epoch=4.ckpt", {"module": STATE})
    with pytest.raises(CheckpointError, match=r"holds 2 weights files \(epoch=3\.ckpt, epoch=4\.ckpt\); name one"):
        weights.read(tmp_path / "mine")


def test_the_state_of_a_run_has_the_card(tmp_path: Path) -> None:
    card = ModelCard(name="mine", class_names=tuple("abcde"))
    header = describe(MODEL.config, card)
    states = {**prefixed("network.", OTHER), **prefixed("average.module.")}
    path = saved(tmp_path / "last.ckpt", {"state_dict": states, "focalnet": header, "epoch": 1})
    found = weights.read(path)
    assert (found.card, found.layout) == (card, "native")
    assert torch.equal(found.state_dict["head.weight"], STATE["head.weight"])
    saved(path, {"state_dict": states})
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"load model\.safetensors beside it"):
        weights.read(path, post_norm=False)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b'{"model_type": "focalnet"}', "it is JSON"),
        (b"\x1f\x8b\x08\x00", r"compressed \(gzip\); unpack it first"),
        (b"GGUF\x03", "a GGUF file"),
        (b"\x89HDF\r\n", "an HDF5 file"),
        (bytes(1000), "it begins with zeros"),
        (b"x" * 257 + b"ustar" + bytes(500), "an archive of other files"),
        (b"\nabc", "its first bytes are not a pickle's"),
    ],
)
def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=expected):
        read_tensors(tmp_path / "x.pth")


@pytest.mark.parametrize("suffix", FORMATS.values())
def test_an_exported_network_is_called_what_it_is(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"x{suffix}").write_bytes(b"<net>")
    with pytest.raises(CheckpointError, match="give the weights that it was exported from"):
        weights.read(tmp_path / f"x{suffix}")


# --- how images were prepared


def published(folder: Path, layout: str, **files: Any) -> Path:
    """Weights of another library's layout, with JSON files beside them."""
    own = weights.save(MODEL, folder / "own.safetensors")
    target = weights.export(weights.read(own), folder / "theirs/model.safetensors", layout)
    for name, content in files.items():
        (target.parent / f"{name}.json").write_text(json.dumps(content))
    return target.parent


HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        (
            {**HALF, "size": {"shortest_edge": 64}, "crop_pct": 1.0, "resample": 3},
            {"image_size": 64, "crop_pct": 1.0, "mean": (0.5,) * 3, "std": (0.5,) * 3},
        ),
        (
            {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "resample": 2},
            {"image_size": 224, "crop_pct": 0.875, "interpolation": "bilinear"},
        ),
        ({"size": 232, "crop_size": 224}, {"image_size": 224}),
        ({"size": {"shortest_edge": 64}, "crop_size": {"height": 32, "width": 48}}, {"image_size": (32, 48)}),
        ({**HALF, "do_rescale": False}, {"mean": (0.5 / 255,) * 3, "std": (0.5 / 255,) * 3}),
        ({**HALF, "rescale_factor": 2 / 255}, {"mean": (0.25,) * 3, "std": (0.25,) * 3}),
        ({**HALF, "do_normalize": False}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}),
    ],
)
def test_the_processor_of_transformers_is_the_preprocessing(tmp_path: Path, description: Any, expected: Any) -> None:
    (tmp_path / "theirs").mkdir()
    folder = published(tmp_path, "huggingface", preprocessor_config=description)
    how = weights.read(folder).card.preprocessing
    for name, value in expected.items():
        assert getattr(how, name) == pytest.approx(value)
    if description.get("size") == 232:
        assert int(how.image_size / how.crop_pct) == 232


def test_what_cannot_be_done_in_the_same_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    description = {"size": {"height": 64, "width": 96}, "crop_size": 32, "do_center_crop": True, "resample": 1}
    folder = published(tmp_path, "huggingface", preprocessor_config=description)
    with pytest.warns(weights.ApproximatePreprocessing, match="size 64 x 96 before a crop of 32 x 32, resample 1"):
        how = weights.read(folder).card.preprocessing
    assert (how.image_size, how.crop_pct) == (32, 0.5)
    (folder / "preprocessor_config.json").write_text('{"image_mean": "x", "image_std": [1, 1, 1]}')
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json next to it is damaged"):
        weights.read(folder)


PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (36, 90, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("processor", "description"),
    [
        ("ViT", {"size": {"height": 64, "width": 96}, "resample": 2}),
        ("ViT", {"size": {"height": 64, "width": 64}, "resample": 3}),
        ("CLIP", {"size": {"height": 80, "width": 80}, "crop_size": {"height": 64, "width": 64}, "resample": 3}),
        ("Bit", {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}, "resample": 3}),
        ("ConvNext", {"size": {"shortest_edge": 64}, "crop_pct": 0.875, "resample": 2}),
        ("ConvNext", {"size": {"shortest_edge": 384}, "crop_pct": 0.875, "resample": 2}),
    ],
)
def test_images_are_prepared_as_transformers_does(tmp_path: Path, processor: str, description: Any) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "theirs").mkdir()
    theirs = getattr(transformers, f"{processor}ImageProcessor")(**HALF, **description, do_convert_rgb=True)
    folder = published(tmp_path, "huggingface", preprocessor_config=theirs.to_dict())
    expected = theirs(PHOTO, return_tensors="pt")["pixel_values"][0]
    found = preprocess(PHOTO, weights.read(folder).card.preprocessing)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 2.5 / 127.5  # of 2: bytes are rounded at other places


@pytest.mark.parametrize("crop_pct", [1.0, 0.9])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_images_are_squashed_as_timm_does(tmp_path: Path, size: tuple[int, int], crop_pct: float) -> None:
    (tmp_path / "theirs").mkdir()
    said = {"input_size": [3, *size], "crop_pct": crop_pct, "crop_mode": "squash", "interpolation": "bicubic"}
    config = {"architecture": "x", "num_classes": 5, "pretrained_cfg": said}
    how = weights.read(published(tmp_path, "timm", config=config)).card.preprocessing
    theirs = timm.data.create_transform(
        said["input_size"], crop_pct=crop_pct, crop_mode="squash", interpolation="bicubic", mean=how.mean, std=how.std
    )
    assert torch.equal(preprocess(PHOTO, how), theirs(PHOTO))
    again = weights.read(weights.save(_with(how), tmp_path / "own.safetensors")).card
    assert again.preprocessing == how


def _with(how: Preprocessing) -> Any:
    model = classifier(PLAIN)
    model.card = ModelCard(name="x.y", preprocessing=how)
    return model


@pytest.mark.parametrize("nested", [True, False])
def test_what_timm_says_of_it_is_taken_field_by_field(tmp_path: Path, nested: bool) -> None:
    (tmp_path / "theirs").mkdir()
    said = {"input_size": [3, 64, 96], "mean": [0.5] * 3, "interpolation": "bilinear"}
    config = {"architecture": "x", "num_classes": 5, **({"pretrained_cfg": said} if nested else said)}
    how = weights.read(published(tmp_path, "timm", config=config)).card.preprocessing
    assert (how.image_size, how.mean, how.interpolation, how.crop_pct) == ((64, 96), (0.5,) * 3, "bilinear", 0.875)
    assert how.std == (0.229, 0.224, 0.225)


def test_the_arguments_of_timm_s_training_are_taken(tmp_path: Path) -> None:
    arguments = argparse.Namespace(img_size=48, input_size=None, mean=[0.5] * 3, std=None, crop_pct=0.95, lr=0.1)
    state = weights.layouts.LAYOUTS["timm"].from_native(STATE, MODEL.shape)
    path = saved(tmp_path / "last.pth.tar", {"arch": "x", "state_dict": state, "args": arguments})
    how = weights.read(path).card.preprocessing
    assert (how.image_size, how.mean, how.std, how.crop_pct) == (48, (0.5,) * 3, (0.229, 0.224, 0.225), 0.95)
