"""The layouts against the libraries they are for, and round trips."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from timm.models.focalnet import FocalNet as TimmFocalNet

from focalnet.errors import CheckpointError, ConfigError
from focalnet.models import Classifier, ClassifierConfig
from focalnet.models.backbone import FocalNetConfig
from focalnet.models.backbone_shapes import infer
from focalnet.models.variants import VARIANTS
from focalnet.weights import layouts
from focalnet.weights.layouts import LAYOUTS, huggingface
from tests.weights.small import CONFIGS, ONLY_OURS, classifier, images

transformers = pytest.importorskip("transformers")


def timm_twin(model: Classifier) -> torch.nn.Module:
    c = model.shape
    return TimmFocalNet(
        in_chans=c.in_chans,
        num_classes=model.num_classes,
        embed_dim=c.embed_dim,
        depths=c.depths,
        mlp_ratio=c.mlp_ratio,
        focal_levels=c.focal_levels,
        focal_windows=c.focal_windows,
        use_overlap_down=c.overlapped,
        use_post_norm=c.post_norm,
        use_post_norm_in_modulation=c.post_norm_in_modulation,
        normalize_modulator=c.normalize_modulator,
        layerscale_value=c.layer_scale,
    ).eval()


def huggingface_twin(model: Classifier) -> torch.nn.Module:
    config = transformers.FocalNetConfig(**huggingface.describe(model.config))
    return transformers.FocalNetForImageClassification(config).eval()


def logits_of(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out = model(x)
    return out.logits if hasattr(out, "logits") else out


TWINS = {"timm": timm_twin, "huggingface": huggingface_twin}


@pytest.mark.parametrize("library", TWINS)
@pytest.mark.parametrize("shape", CONFIGS)
def test_our_weights_give_the_same_logits_in_the_library(library: str, shape: str) -> None:
    ours = classifier(CONFIGS[shape])
    theirs = TWINS[library](ours)

    theirs.load_state_dict(LAYOUTS[library].from_native(ours.state_dict(), ours.shape), strict=True)

    x = images(ours)
    torch.testing.assert_close(logits_of(theirs, x), logits_of(ours, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("library", TWINS)
@pytest.mark.parametrize("shape", CONFIGS)
def test_the_library_s_weights_give_the_same_logits_in_ours(library: str, shape: str) -> None:
    reference = classifier(CONFIGS[shape], seed=3)
    theirs = TWINS[library](reference)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1))

    layout = layouts.detect(theirs.state_dict()).layout
    state_dict, unknown = layout.to_native(theirs.state_dict())
    told = layout.post_norm_of(theirs.state_dict())
    settings = {"normalize_modulator": reference.shape.normalize_modulator}
    settings["post_norm"] = reference.shape.post_norm if told is None else told
    config, _ = infer(state_dict, settings=settings)
    ours = config.build().eval()
    ours.load_state_dict(state_dict, strict=True)

    assert layout.name == library
    assert unknown == []
    x = images(ours)
    torch.testing.assert_close(logits_of(ours, x), logits_of(theirs, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [*CONFIGS, *ONLY_OURS])
def test_round_trips_are_exact(layout: str, shape: str) -> None:
    model = classifier((CONFIGS | ONLY_OURS)[shape])

    theirs = LAYOUTS[layout].from_native(model.state_dict(), model.shape)
    back, unknown = LAYOUTS[layout].to_native(theirs)

    assert unknown == []
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_architecture_survives_the_round_trip(layout: str, name: str) -> None:
    """Names and shapes in all layouts, and the configuration found again from them; on meta, so full size."""
    with torch.device("meta"):
        config = FocalNetConfig.from_dict(VARIANTS[name].shape)
        state_dict = ClassifierConfig(backbone=config, num_classes=VARIANTS[name].num_classes).build().state_dict()

    theirs = LAYOUTS[layout].from_native(state_dict, config)
    back, unknown = LAYOUTS[layout].to_native(theirs)
    found, architecture = infer(back)

    assert unknown == []
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in state_dict.items()}
    assert layouts.detect(theirs) == ("", LAYOUTS[layout])
    assert architecture == name
    assert found == ClassifierConfig(backbone=config, num_classes=VARIANTS[name].num_classes)


@pytest.mark.parametrize("shape", CONFIGS)
def test_timm_names_tell_post_norm(shape: str) -> None:
    model = classifier(CONFIGS[shape])
    theirs = LAYOUTS["timm"].from_native(model.state_dict(), model.shape)

    assert LAYOUTS["timm"].post_norm_of(theirs) is model.shape.post_norm


@pytest.mark.parametrize(
    ("layout", "shape"),
    [("timm", "isotropic"), ("timm", "nano"), ("timm", "no_patch_norm"), ("huggingface", "no_patch_norm")],
)
def test_a_shape_the_library_has_no_model_for_is_refused(layout: str, shape: str) -> None:
    with pytest.raises(ConfigError, match=r"only|always"):
        layouts.check(LAYOUTS[layout], FocalNetConfig.from_dict(ONLY_OURS[shape]))


def test_an_overlapped_stem_of_another_padding_is_refused() -> None:
    config = FocalNetConfig.from_dict({**CONFIGS["overlapped"], "stem_padding": 3})
    with pytest.raises(ConfigError, match="stem_padding=3"):
        layouts.check(LAYOUTS["timm"], config)
    with pytest.raises(ConfigError, match="stem_padding=2"):
        layouts.check(LAYOUTS["huggingface"], config)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "model.", "visual.", "net.", "backbone.", "my.deep.encoder."],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_wrappers_are_taken_off(prefix: str, layout: str) -> None:
    model = classifier(CONFIGS["plain"])
    theirs = LAYOUTS[layout].from_native(model.state_dict(), model.shape)
    wrapped = {prefix + key: value for key, value in theirs.items()} | {"text.token_embedding": torch.zeros(1)}

    found = layouts.detect(wrapped)
    inside, outside = layouts.unwrap(wrapped, found)

    assert found == (prefix, LAYOUTS[layout])
    assert inside.keys() == theirs.keys()
    assert outside == ["text.token_embedding"]


def test_a_bare_transformers_model_is_recognised() -> None:
    model = classifier(CONFIGS["plain"])
    bare = huggingface_twin(model).focalnet.state_dict()

    place = layouts.detect(bare)
    inside, _ = layouts.unwrap(bare, place)
    state_dict, unknown = place.layout.to_native(inside)

    assert unknown == []
    assert state_dict.keys() == {key for key in model.state_dict() if not key.startswith("head")}


def test_the_mask_token_of_a_masked_image_model_is_reported_as_unknown() -> None:
    model = classifier(CONFIGS["plain"])
    theirs = LAYOUTS["huggingface"].from_native(model.state_dict(), model.shape)

    _, unknown = LAYOUTS["huggingface"].to_native({**theirs, "focalnet.embeddings.mask_token": torch.zeros(1, 1, 8)})

    assert unknown == ["focalnet.embeddings.mask_token"]


def test_of_several_networks_the_average_is_taken_or_all_are_named() -> None:
    model = classifier(CONFIGS["plain"])
    two = [f"{prefix}{key}" for prefix in ("student.", "teacher.") for key in model.state_dict()]
    with pytest.raises(CheckpointError, match=r"several FocalNets \(student\., teacher\.\)"):
        layouts.detect(two)
    averaged = [f"{prefix}{key}" for prefix in ("network.", "model_ema.module.") for key in model.state_dict()]
    assert layouts.detect(averaged).prefix == "model_ema.module."


def test_a_network_with_the_same_names_beside_a_focalnet_is_not_one() -> None:
    model = classifier(CONFIGS["plain"])
    keys = ["vit.patch_embed.proj.weight", "vit.blocks.0.attn.qkv.weight"]
    assert layouts.detect([*keys, *(f"focal.{key}" for key in model.state_dict())]).prefix == "focal."


def test_foreign_keys_are_named() -> None:
    with pytest.raises(CheckpointError, match=r'"conv1\.weight".*not those of a FocalNet'):
        layouts.detect(["conv1.weight", "layer1.0.conv1.weight"])


def test_a_segmenter_is_told_apart() -> None:
    with pytest.raises(CheckpointError, match="holds a detector or segmenter that this version cannot load"):
        layouts.detect(["backbone.patch_embed.proj.weight", "neck.fpn_convs.0.weight"])


def test_a_swin_transformer_is_not_a_focalnet() -> None:
    keys = {"patch_embed.proj.weight": torch.zeros(8, 3, 4, 4), "layers.0.blocks.0.attn.qkv.weight": torch.zeros(24, 8)}
    with pytest.raises(CheckpointError, match="no focal modulation"):
        infer(keys)


def test_an_unpublished_shape_needs_post_norm_from_the_caller() -> None:
    state_dict = classifier(CONFIGS["plain"]).state_dict()
    with pytest.raises(CheckpointError, match=r"embed_dim=8.*post_norm=False or True"):
        infer(state_dict)
    for value in (False, True):
        assert infer(state_dict, settings={"post_norm": value})[0].backbone.post_norm is value


def test_a_named_architecture_must_have_the_shapes() -> None:
    with torch.device("meta"):
        small = FocalNetConfig.from_dict(VARIANTS["focalnet_small_lrf"].shape)
        state_dict = ClassifierConfig(backbone=small, num_classes=7).build().state_dict()
    with pytest.raises(CheckpointError, match=r"not a focalnet_tiny_lrf.*looks like focalnet_small_lrf"):
        infer(state_dict, architecture="focalnet_tiny_lrf")


def test_the_shape_is_found_for_other_channels_and_classes() -> None:
    with torch.device("meta"):
        grey = dataclasses.replace(FocalNetConfig.from_dict(VARIANTS["focalnet_base_iso"].shape), in_chans=1)
        state_dict = ClassifierConfig(backbone=grey, num_classes=0).build().state_dict()
    config, name = infer(state_dict)
    assert (name, config.backbone.in_chans, config.backbone.post_norm, config.num_classes) == (
        "focalnet_base_iso",
        1,
        True,
        0,
    )
