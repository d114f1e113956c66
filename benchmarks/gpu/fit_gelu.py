"""Finds the polynomial of ``kernels/triton/kernels.py``: log2 of the normal distribution function's lower tail.

    python benchmarks/gpu/fit_gelu.py

``Phi(-a) = 2 ** R(a)``: the logarithm is nearly a parabola, so a short polynomial and one power of two give Phi without
the cancellation of ``1 + erf``. Fitted by reweighted least squares to the smallest absolute error of ``a * Phi(-a)``,
which is the GELU's; beyond the fit the leading coefficient, being negative, sends the power to 0. Prints the
coefficients and the errors in single precision, beside those of PyTorch's erf.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

DEGREE, END, ROUNDS = 8, 8.0, 60


def fit() -> np.ndarray:
    """Coefficients of R on [0, END], lowest order first."""
    a = np.linspace(0, END, 8001)
    tail = torch.special.log_ndtr(torch.from_numpy(-a)).numpy()
    importance = np.maximum(a, 0.5) * np.exp(tail) + 1e-11
    powers = np.vander(2 * a / END - 1, DEGREE + 1, increasing=True)
    weight = np.ones_like(a)
    for _ in range(ROUNDS):  # Lawson: where the error is large it counts more in the next round
        scale = importance * np.sqrt(weight)
        found = np.linalg.lstsq(powers * scale[:, None], tail / math.log(2) * scale, rcond=1e-15)[0]
        error = np.abs((powers @ found - tail / math.log(2)) * importance)
        weight *= error / error.max() + 1e-6
        weight /= weight.mean()
    fitted = np.polynomial.Polynomial(found, domain=[0, END], window=[-1, 1])
    return fitted.convert(domain=[-1, 1], window=[-1, 1]).coef


def gelu(x: torch.Tensor, coefficients: np.ndarray) -> torch.Tensor:
    """As the kernels compute it, in the precision of x."""
    a = x.abs()
    r = torch.zeros_like(a)
    for coefficient in coefficients[::-1]:
        r = r * a + float(coefficient)
    tail = torch.exp2(r)
    return x * torch.where(x > 0, 1 - tail, tail)


def main() -> None:
    coefficients = fit()
    for order, coefficient in enumerate(coefficients):
        print(f"_R{order} = {float(coefficient)!r}")
    x = torch.linspace(-9, 9, 2_000_001)
    exact = x.double() * torch.special.ndtr(x.double())
    for name, value in (("ours", gelu(x, coefficients)), ("erf", F.gelu(x))):
        error = (value.double() - exact).abs()
        print(f"{name:5s} largest error {error.max():.2e}, below zero {error[x < 0].max():.2e}")


if __name__ == "__main__":
    main()
