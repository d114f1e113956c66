"""Finds the functions of kernels/cpu/vector.h behind GELU: rational minimax fits in high precision.

Both are 1/2 + x P(x^2) / Q(x^2): for |x| <= 5.6 the normal distribution function Phi(x), for |x| <= 6.2 the slope of
GELU, Phi(x) + x Phi'(x). Linearized least squares for numerator and denominator (Sanathanan and Koerner 1963),
reweighted towards the largest errors (Lawson 1961).

    python benchmarks/fit_gelu.py
"""

from __future__ import annotations

from collections.abc import Callable

import mpmath as mp

NODES, ROUNDS = 120, 12


def fit(
    function: Callable[[mp.mpf], mp.mpf], limit: mp.mpf, p: int, q: int
) -> tuple[mp.mpf, list[mp.mpf], list[mp.mpf]]:
    """Returns the largest error of x P / Q relative to ``function - 1/2``, and P and Q, constant first."""
    half = limit**2 / 2
    nodes = [half * (1 + mp.cos(mp.pi * (2 * i + 1) / (2 * NODES))) for i in range(NODES)]
    target = [(function(mp.sqrt(t)) - 0.5) / mp.sqrt(t) for t in nodes]
    weights, denominator = [1 / f for f in target], [mp.mpf(1)] * NODES
    best = (mp.inf, [], [])
    for _ in range(ROUNDS):
        rows, right = mp.matrix(NODES, p + 1 + q), mp.matrix(NODES, 1)
        for i, t in enumerate(nodes):
            scale = weights[i] / denominator[i]
            right[i] = scale * target[i]
            for power in range(p + 1):
                rows[i, power] = scale * t**power
            for power in range(1, q + 1):
                rows[i, p + power] = -scale * target[i] * t**power
        found = mp.lu_solve(rows, right)
        above, below = list(found[: p + 1]), [mp.mpf(1), *found[p + 1 :]]
        denominator = [mp.polyval(below[::-1], t) for t in nodes]
        errors = [
            abs(mp.polyval(above[::-1], t) / d / f - 1) for t, d, f in zip(nodes, denominator, target, strict=True)
        ]
        best = min(best, (max(errors), above, below), key=lambda candidate: candidate[0])
        weights = [w * mp.sqrt(1 + e / max(errors)) for w, e in zip(weights, errors, strict=True)]
    return best


def slope(x: mp.mpf) -> mp.mpf:
    """Of GELU."""
    return mp.ncdf(x) + x * mp.npdf(x)


if __name__ == "__main__":
    mp.mp.dps = 60
    for name, *wanted in (("Phi", mp.ncdf, mp.mpf("5.6"), 5, 5), ("slope", slope, mp.mpf("6.2"), 6, 7)):
        error, numerator, denominator = fit(*wanted)
        print(name, "- 1/2, relative error", mp.nstr(error, 3))
        print("P", [mp.nstr(c, 10) for c in numerator])
        print("Q", [mp.nstr(c, 10) for c in denominator])
