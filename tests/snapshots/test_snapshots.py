"""Names, defaults, construction order and headers are what they were."""

from __future__ import annotations

import pytest

pytest.importorskip("lightning", reason="options are those of training, in the extra train")
pytest.importorskip("jsonargparse", reason="options are those of training, in the extra train")

from tests.snapshots import topics
from tests.snapshots.compare import check, differences, plain, read


@pytest.mark.parametrize("topic", topics.EXACT)
def test_it_is_as_before(topic: str) -> None:
    check(differences(read(topic), plain(topics.EXACT[topic]())))


@pytest.mark.parametrize("topic", topics.NEARLY)
def test_it_is_as_before_but_for_rounding(topic: str) -> None:
    check(differences(read(topic), plain(topics.NEARLY[topic]()), relative=1e-4, absolute=1e-5))


@pytest.mark.parametrize("name", read("help"))
def test_the_page_of_help_says_all_of_it(name: str) -> None:
    stored = read("help")[name]
    with topics.plain_terminal():
        page = "".join(topics.output(*([] if name == "focalnet" else [name]), "--help").split())
    texts = [stored["help"], stored["epilog"], *stored.get("commands", [])]
    for parameter, known in stored.items():
        if isinstance(known, dict):
            texts += [*parameter.split()[:1], known.get("help")] if parameter.startswith("-") else [known.get("help")]
    assert [text for text in texts if text and "".join(text.split()) not in page] == []


def test_differences_are_named() -> None:
    stored = {"a": {"x": 1, "y": [1.0, 2.0]}, "b": {"z": ["one", "two"]}}
    assert differences(stored, {"b": stored["b"], "a": {"x": True, "w": 0, "y": [1.0, 2.5]}}) == [
        "a: w is new (0)",
        "a: x: was 1, is true",
        "a: y[1]: was 2.0, is 2.5",
        "entries moved: a was at place 0, where b is now",
    ]
    assert differences(stored, {"a": stored["a"], "b": {"z": ["two", "one"]}}) == [
        "b: z: entries moved: one was at place 0, where two is now"
    ]
    assert differences(1.0, 1.00001, relative=1e-4) == []
    with pytest.raises(AssertionError, match=r"1 entries differ.*make\.py"):
        check(["x"])
