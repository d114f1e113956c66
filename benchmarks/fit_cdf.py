"""Finds the normal distribution function of ops/native/vector.h: a rational minimax fit in high precision.

Phi(x) = 1/2 + x P(x^2) / Q(x^2) on |x| <= 5.6, P and Q of degree 5, relative error of the second term about 2e-8.
Linearised least squares for numerator and denominator (Sanathanan and Koerner 1963), reweighted towards the largest
errors (Lawson 1961).

    python benchmarks/fit_cdf.py
"""

from __future__ import annotations

import mpmath as mp

LIMIT, DEGREE, NODES, ROUNDS = mp.mpf("5.6"), 5, 120, 12


def fit() -> tuple[mp.mpf, list[mp.mpf], list[mp.mpf]]:
    """Returns the largest relative error at the nodes, and the coefficients of P and Q, constant first."""
    half = LIMIT**2 / 2
    nodes = [half * (1 + mp.cos(mp.pi * (2 * i + 1) / (2 * NODES))) for i in range(NODES)]
    target = [(mp.ncdf(mp.sqrt(t)) - 0.5) / mp.sqrt(t) for t in nodes]
    weights, denominator = [1 / f for f in target], [mp.mpf(1)] * NODES
    best = (mp.inf, [], [])
    for _ in range(ROUNDS):
        rows, right = mp.matrix(NODES, 2 * DEGREE + 1), mp.matrix(NODES, 1)
        for i, t in enumerate(nodes):
            scale = weights[i] / denominator[i]
            right[i] = scale * target[i]
            for power in range(DEGREE + 1):
                rows[i, power] = scale * t**power
                if power:
                    rows[i, DEGREE + power] = -scale * target[i] * t**power
        found = mp.lu_solve(rows, right)
        p, q = list(found[: DEGREE + 1]), [mp.mpf(1), *found[DEGREE + 1 :]]
        denominator = [mp.polyval(q[::-1], t) for t in nodes]
        errors = [abs(mp.polyval(p[::-1], t) / d / f - 1) for t, d, f in zip(nodes, denominator, target, strict=True)]
        best = min(best, (max(errors), p, q), key=lambda candidate: candidate[0])
        weights = [w * mp.sqrt(1 + e / max(errors)) for w, e in zip(weights, errors, strict=True)]
    return best


if __name__ == "__main__":
    mp.mp.dps = 60
    error, numerator, denominator = fit()
    print("relative error", mp.nstr(error, 3))
    print("P", [mp.nstr(c, 10) for c in numerator])
    print("Q", [mp.nstr(c, 10) for c in denominator])
