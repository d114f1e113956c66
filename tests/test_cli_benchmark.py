"""Timing in turns."""

from __future__ import annotations

from focalnet.cli.benchmark import Timing, in_turns


def test_every_candidate_is_called_once_a_round_in_rotating_order() -> None:
    calls: list[str] = []
    timings = in_turns({n: lambda n=n: calls.append(n) for n in "abc"}, rounds=3, warmup=1)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    assert [len(t.seconds) for t in timings.values()] == [3, 3, 3]
    assert all(s >= 0 for t in timings.values() for s in t.seconds)


def test_median_and_quartiles() -> None:
    assert Timing((3.0, 1.0, 2.0, 5.0, 4.0)).median == 3.0
    assert Timing((3.0, 1.0, 2.0, 5.0, 4.0)).quartiles == (2.0, 4.0)
    assert Timing((2.0,)).quartiles == (2.0, 2.0)
