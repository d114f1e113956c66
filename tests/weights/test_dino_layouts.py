"""DINO's checkpoints: FocalNet-DINO's, detrex's and OpenMMLab's, read, written, inferred, and refused by name."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from focalnet import registry, weights
from focalnet.card import ModelCard, Preprocessing
from focalnet.cli.main import main
from focalnet.errors import CheckpointError
from focalnet.models.dino import DINO, DINOConfig
from focalnet.models.dino.layouts import from_detrex, to_detrex, to_release
from focalnet.zoo import load
from tests.models import small

LAYOUTS = ("focalnet_dino", "detrex", "openmmlab")
CARD = ModelCard(
    name="mine",
    class_names=("a", "b", "c"),
    category_ids=(2, 5, 6),
    preprocessing=Preprocessing(image_size=64, max_size=96),
)


def built(**options: Any) -> DINO:
    torch.manual_seed(0)
    model = small.config("dino", **options).build().eval()
    assert isinstance(model, DINO)
    for parameter in model.bbox_head.parameters():
        torch.nn.init.normal_(parameter)
    model.card = CARD
    return model


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(theirs[key], tensor) for key, tensor in ours.items())


#: What tensors tell of the network.
TRACED = ("num_classes", "scales", "channels", "encoder_layers", "decoder_layers", "feedforward_channels")
TRACED += ("shared_class_head", "shared_box_head", "learned_queries", "spare_labels", "projection_bias")


@pytest.mark.parametrize(
    "options",
    [
        {"spare_labels": 1},
        {"scales": 5, "shared_class_head": False, "spare_labels": 1},
        {"shared_box_head": False, "learned_queries": False, "projection_bias": False, "spare_labels": 1},
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_conversion_and_back_gives_every_bit(layout: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = built(**options)
    card = CARD if layout != "focalnet_dino" else replace(CARD, category_ids=(0, 1, 2))  # all its outputs are classes
    model.card = card
    ours = weights.save(model, tmp_path / "ours.safetensors")
    theirs = weights.export(weights.read(ours), tmp_path / "theirs.pth", layout)
    read = weights.read(theirs, post_norm=False)
    assert (read.layout, read.unused) == (layout, ())
    assert same(model.state_dict(), read.state_dict)
    assert isinstance(read.config, DINOConfig)
    assert read.config.num_queries == (12 if model.config.learned_queries else 900)
    assert [getattr(read.config, name) for name in TRACED] == [getattr(model.config, name) for name in TRACED]
    again = weights.read(weights.export(read, tmp_path / "again.pth", layout), post_norm=False)
    assert same(read.state_dict, again.state_dict)


def test_names_of_detrex() -> None:
    model = built(scales=5)
    theirs = to_detrex(model.state_dict(), model.config)
    assert {
        "backbone.norm3.weight",
        "neck.convs.0.norm.weight",
        "neck.extra_convs.0.conv.bias",
        "transformer.level_embeds",
        "transformer.tgt_embed.weight",
        "transformer.enc_output_norm.bias",
        "transformer.encoder.layers.0.attentions.0.sampling_offsets.bias",
        "transformer.encoder.layers.0.ffns.0.layers.0.0.weight",
        "transformer.decoder.layers.1.attentions.0.attn.in_proj_weight",
        "transformer.decoder.layers.1.attentions.1.value_proj.weight",
        "transformer.decoder.layers.1.ffns.0.layers.1.bias",
        "transformer.decoder.layers.1.norms.2.weight",
        "transformer.decoder.ref_point_head.layers.1.weight",
        "transformer.decoder.norm.weight",
        "class_embed.2.weight",
        "transformer.decoder.bbox_embed.2.layers.2.bias",
        "label_enc.weight",
    } < theirs.keys()
    assert not any("enc_out_" in key or ".gn." in key or "ffn." in key for key in theirs)
    assert same(model.state_dict(), from_detrex(theirs))


def test_what_the_layout_of_a_file_implies(tmp_path: Path) -> None:
    name = "dino_focalnet_large_fl4"
    shape = {**registry.family_of(name).variants[name].shape, "embed_dim": 4, "depths": (1, 1, 1, 1)}
    model = built(**shape, position_temperatures=(10000.0, 10000.0), position_offset=-0.5)
    assert model.config.backbone.normalize_modulator
    for layout, normalizes in {"focalnet_dino": True, "detrex": False}.items():
        path = tmp_path / f"{layout}.pth"
        ours = weights.read(weights.save(model, tmp_path / "ours.safetensors"))
        weights.export(ours, path, layout)
        read = weights.read(path, post_norm=True)
        assert read.backbone.normalize_modulator == normalizes
        assert (read.backbone.stem_padding, read.backbone.pad_to_stride) == (2, True)
        assert isinstance(read.config, DINOConfig)
        assert read.config.position_offset == (-0.5 if layout == "detrex" else 0.0)
        assert read.config.position_temperatures == ((10000.0,) * 2 if layout == "detrex" else (20.0,) * 2)
        left = weights.untold(ours, path) if layout == "focalnet_dino" else {}
        assert left.get("position_offset", -0.5) == -0.5
        with pytest.raises(CheckpointError, match=r"nothing in it tells whether the norms come before or after"):
            weights.read(path)


def released(model: DINO, path: Path, **beside: Any) -> Path:
    torch.save({"model": to_release(model.state_dict(), model.config), **beside}, path)
    return path


def test_arguments_beside_the_weights(tmp_path: Path) -> None:
    model = built(channels=32, heads=8, points=2, scales=5)
    told = {"nheads": 8, "enc_n_points": 2, "num_select": 7, "dn_number": 30}
    told |= {"pe_temperatureH": 10, "pe_temperatureW": 12}
    arguments = argparse.Namespace(modelname="dino", pre_norm=False, lr=1e-4, dataset_file="coco", **told)
    config = weights.read(released(model, tmp_path / "a.pth", args=arguments), post_norm=False).config
    assert isinstance(config, DINOConfig)
    assert (config.heads, config.points, config.max_per_image, config.denoising_queries) == (8, 2, 7, 30)
    assert config.position_temperatures == (10.0, 12.0)
    for wrong, says in [
        ({"pre_norm": True}, "pre_norm=True is not supported, only False"),
        ({"num_select": "all"}, "num_select='all' is not a number"),
        ({"nheads": 3}, "channels=32 must be a multiple"),
    ]:
        path = released(model, tmp_path / "b.pth", args=argparse.Namespace(**wrong))
        with pytest.raises(CheckpointError, match=rf"b\.pth: .*{says}"):
            weights.read(path, post_norm=False)


class Code:
    """Unpickling it with the plain unpickler makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("where", ["beside", "in_the_arguments"])
def test_a_file_that_also_carries_code_runs_nothing(where: str, tmp_path: Path) -> None:
    code = Code(tmp_path / "was_run")
    beside = {"extra": code} if where == "beside" else {"args": argparse.Namespace(x=code)}
    path = released(built(), tmp_path / "code.pth", **beside)
    with pytest.raises(CheckpointError, match=r"code\.pth: refused because it holds Python code"):
        load(path)
    assert not code.target.exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scales": 5}, "these weights have scales=4, not 5"),
        ({"scales": 5, "out_indices": (0, 1, 2, 3)}, "these weights have scales=4, not 5"),
        ({"decoder_layers": 1}, "these weights have decoder_layers=2, not 1"),
        ({"num_queries": 5, "heads": 4}, "these weights have heads=2, not 4 and num_queries=12, not 5"),
        ({"shared_class_head": False}, "these weights have shared_class_head=True, not False"),
        ({"embed_dim": 16}, "these weights have embed_dim=8, not 16"),
    ],
)
def test_a_file_for_another_network_is_refused_by_what_differs(
    options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    path = released(built(), tmp_path / "four.pth")
    with pytest.raises(Exception, match=rf"four\.pth: .*{says}; leave out the option") as caught:
        load(path, post_norm=False, **options)
    assert "\n" not in str(caught.value)


def test_a_file_that_lacks_a_part_is_refused(tmp_path: Path) -> None:
    for layout, lost in (("focalnet_dino", "class_embed"), ("detrex", "transformer.encoder"), ("openmmlab", "decoder")):
        model = built()
        ours = weights.read(weights.save(model, tmp_path / "ours.safetensors"))
        section = "state_dict" if layout == "openmmlab" else "model"
        tensors = torch.load(weights.export(ours, tmp_path / "x.pth", layout), weights_only=True)[section]
        kept = {key: tensor for key, tensor in tensors.items() if lost not in key}
        torch.save({section: kept}, tmp_path / "part.pth")
        with pytest.raises(CheckpointError, match=r"part\.pth: .*(missing|has another shape)"):
            weights.read(tmp_path / "part.pth", post_norm=False)


def test_layouts_of_other_networks_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = weights.save(small.config("atss").build(), tmp_path / "atss.safetensors")
    assert main(["convert", str(ours), str(tmp_path / "x.pth"), "--to", "detrex"]) == 2
    assert "atss.safetensors: only dino has the layout detrex" in capsys.readouterr().err
    model = built()
    model.card = replace(CARD, category_ids=(1, 2, 10**6))
    numbered = weights.save(model, tmp_path / "dino.safetensors")
    assert main(["convert", str(numbered), str(tmp_path / "x.pth"), "--to", "focalnet_dino"]) == 2
    assert "its category ids go from 1 to 1000000" in capsys.readouterr().err
    assert not (tmp_path / "x.pth").exists()


MEASURE = """
import sys
from focalnet import load

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

small, *large = sys.argv[1:]
load(small, post_norm=False)  # for what is imported
for path in large:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak counts from here
    before = peak()
    model = load(path, post_norm=False)
    print((peak() - before) / sum(p.numel() * p.element_size() for p in model.parameters()))
    del model
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").is_file(), reason="the peak of a process is read from /proc")
def test_loading_takes_little_more_memory_than_the_weights(tmp_path: Path) -> None:
    released(built(), tmp_path / "small.pth")
    model = built(channels=64, heads=2, norm_groups=4, encoder_layers=6, feedforward_channels=40_000)
    assert sum(p.numel() for p in model.parameters()) * 4 > 150e6
    moments = {i: {"exp_avg": p.detach(), "exp_avg_sq": -p.detach()} for i, p in enumerate(model.parameters())}
    released(model, tmp_path / "large.pth", optimizer={"state": moments}, args=argparse.Namespace())
    weights.save(model, tmp_path / "large.safetensors")
    del model, moments
    files = [str(tmp_path / name) for name in ("small.pth", "large.pth", "large.safetensors")]
    found = subprocess.run([sys.executable, "-c", MEASURE, *files], capture_output=True, text=True, check=True).stdout
    shares = list(map(float, found.split()))
    assert len(shares) == 2
    assert max(shares) <= 1.3
