"""How the classes of an image are drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from focalnet.errors import ConfigError
from focalnet.results import Classification


def result(width: int = 400, height: int = 300, names: tuple[str, ...] = ("cat", "dog")) -> Classification:
    scores = tuple(np.linspace(0.9, 0.0, len(names)).tolist())
    return Classification(tuple(range(len(names))), scores, names, image=Image.new("RGB", (width, height), "navy"))


@settings(max_examples=25)
@given(width=st.integers(1, 3000), height=st.integers(1, 3000), name=st.text(max_size=200))
def test_any_image_and_name_can_be_drawn(width: int, height: int, name: str) -> None:
    drawn = result(width, height, (name, "dog")).draw()
    assert drawn.width >= 320
    assert max(drawn.width, drawn.height) < 1800


def test_the_image_stays_as_it_is_above_the_classes() -> None:
    original = result()
    drawn = original.draw()
    assert drawn.width == 400
    assert drawn.crop((0, 0, 400, 300)).tobytes() == original.image.tobytes()
    assert len(drawn.crop((0, 300, *drawn.size)).getcolors(99999)) > 10  # text and bars below


def test_bars_grow_with_the_score() -> None:
    drawn = np.asarray(result(names=("a", "b", "c")).draw())
    best = (drawn == (0x2F, 0x6F, 0xDE)).all(-1).sum()
    rest = (drawn == (0xA9, 0xC3, 0xF2)).all(-1).sum()
    assert best == pytest.approx(2 * rest, rel=0.05)  # scores 0.9, 0.45 and 0


def test_a_result_without_image_cannot_be_drawn() -> None:
    with pytest.raises(ConfigError, match=r"cat\.jpg"):
        Classification((0,), (1.0,), ("cat",), path="cat.jpg").draw()


def test_as_a_frame_it_keeps_its_size_and_names_the_best_class() -> None:
    original = result()
    drawn = original.draw(as_frame=True)
    assert drawn.size == original.image.size
    assert drawn.getpixel((0, 0)) == (0x2F, 0x6F, 0xDE)  # behind the name
    assert drawn.crop((0, 40, 400, 300)).tobytes() == original.image.crop((0, 40, 400, 300)).tobytes()
    assert original.image.getcolors() == [(400 * 300, (0, 0, 128))]  # it is drawn on a copy
    assert result(names=()).draw(as_frame=True).tobytes() == original.image.tobytes()
