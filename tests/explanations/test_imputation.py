"""The imputation of ROAD equals the solution of its dense linear system."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from focalnet.errors import InputError
from focalnet.explanations import imputation


def _dense(image: Tensor, gone: Tensor) -> Tensor:
    """Every missing pixel is the weighted mean of its neighbors, written out pixel by pixel."""
    height, width = gone.shape
    matrix = torch.eye(height * width, dtype=torch.float64)
    right = image.double().flatten(1).T.clone()
    for y, x in gone.nonzero().tolist():
        row = y * width + x
        right[row] = 0
        around = [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
        inside = [(b, a) for b, a in around if 0 <= b < height and 0 <= a < width]
        weights = {(b, a): 1 / 6 if b == y or a == x else 1 / 12 for b, a in inside}
        for (b, a), weight in weights.items():
            matrix[row, b * width + a] -= weight / sum(weights.values())
    return torch.linalg.solve(matrix, right).T.reshape(image.shape)


@pytest.mark.parametrize("small", [64, 0], ids=["solved", "approached"])
@pytest.mark.parametrize(("height", "width"), [(12, 12), (5, 17), (16, 3), (1, 8), (8, 1)])
def test_imputation_solves_the_linear_system(
    monkeypatch: pytest.MonkeyPatch, small: int, height: int, width: int
) -> None:
    monkeypatch.setattr(imputation, "SMALL", small)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 2, height, width, generator=generator)
    gone = torch.rand(4, height, width, generator=generator) < torch.tensor([0.1, 0.5, 0.9, 0.0])[:, None, None]
    gone[:3, 0, 0] = True
    gone[:, -1, -1] = False
    gone[2, : height // 2] = True  # a large hole, as smooth maps leave
    expected = torch.stack([_dense(image, missing) for image, missing in zip(images, gone, strict=True)])
    found = imputation.impute(images, gone)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
    kept = ~gone[:, None].expand_as(images)
    assert torch.equal(found[kept], images[kept])


def test_an_image_without_pixels_is_refused() -> None:
    gone = torch.zeros(2, 4, 4, dtype=torch.bool)
    gone[1] = True
    with pytest.raises(InputError, match="without any pixel left"):
        imputation.impute(torch.zeros(2, 3, 4, 4), gone)
