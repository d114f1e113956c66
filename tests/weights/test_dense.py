"""The rules of dense initialisation, one by one; ``parity/test_kernel_resize.py`` has the official numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focalnet.errors import ConfigError
from focalnet.weights.dense import adapt, add_gates, initial, resize_kernel
from focalnet.weights.report import compare
from tests.weights.small import PLAIN, classifier, images

odd = st.integers(0, 6).map(lambda n: 2 * n + 1)


@settings(max_examples=50)
@given(small=odd, large=odd)
def test_a_kernel_padded_and_cropped_again_is_itself(small: int, large: int) -> None:
    small, large = sorted((small, large))
    kernel = torch.randn(3, 1, small, small)
    padded = resize_kernel(kernel, large)
    assert padded.shape[-2:] == (large, large)
    assert torch.equal(resize_kernel(padded, small), kernel)
    assert padded.abs().sum().isclose(kernel.abs().sum())


def test_new_gates_come_before_the_global_one() -> None:
    rows = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert add_gates(rows, 6).tolist() == [1, 2, 3, 0, 0, 4]


def test_a_padded_network_computes_the_same() -> None:
    model = classifier(PLAIN)
    wide = classifier({**PLAIN, "focal_windows": (9, 7)}, seed=1)

    wide.load_state_dict(adapt(model.state_dict(), wide.state_dict()), strict=True)

    with torch.no_grad():
        torch.testing.assert_close(wide(images(model)), model(images(model)), rtol=1e-4, atol=1e-5)


def test_an_extra_level_starts_without_a_local_say() -> None:
    model = classifier(PLAIN)
    deep = classifier({**PLAIN, "focal_levels": (3, 3)}, seed=1)
    missing, _ = deep.load_state_dict(adapt(model.state_dict(), deep.state_dict()), strict=False)

    assert missing == initial(model.state_dict(), deep.state_dict())
    gates = deep.layers[0].blocks[0].modulation.f.weight[2 * 8 :]
    assert torch.equal(gates[2], torch.zeros(8))
    assert torch.equal(gates[3], model.layers[0].blocks[0].modulation.f.weight[-1])


def test_fewer_levels_are_refused() -> None:
    with pytest.raises(ConfigError, match="more focal levels than the model"):
        adapt(classifier(PLAIN).state_dict(), classifier({**PLAIN, "focal_levels": (1, 2)}).state_dict())


def test_a_leading_visual_is_taken_off() -> None:
    model = classifier(PLAIN)
    prefixed = {f"visual.{key}": value for key, value in model.state_dict().items()}
    assert adapt(prefixed, model.state_dict()).keys() == model.state_dict().keys()


def test_another_width_is_left_for_the_report() -> None:
    model, other = classifier(PLAIN), classifier({**PLAIN, "embed_dim": 16})
    report = compare(adapt(model.state_dict(), other.state_dict()), other.state_dict())
    assert "patch_embed.proj.weight: (8, 3, 4, 4) instead of (16, 3, 4, 4)" in report.mismatched
    assert any("modulation.f.weight" in line for line in report.mismatched)
