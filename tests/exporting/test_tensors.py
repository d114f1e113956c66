"""``predict_tensors`` of every family gives the results of ``predict``, before anything is exported."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from focalnet.errors import ConfigError, ExportError
from focalnet.exporting import agreement
from focalnet.exporting.exporting import _header
from focalnet.exporting.tracing import Trace
from focalnet.inference.exported import _with_tensors
from focalnet.models import Model
from focalnet.runtime.results import results
from tests.exporting.networks import FAMILIES, network
from tests.models.toy_detector import Cells

SIZE, BATCH = (96, 160), 3


class Eager:
    """A network as if it were exported: its tensors, turned into results by the code that reads files."""

    def __init__(self, model: Model[Any, Any]) -> None:
        self.model = model
        self.header = _header(model, Trace(None, (), (), 65))  # type: ignore[arg-type]
        self.config = type("Config", (), {"max_per_image": int(self.header.thresholds.get("max_per_image", 0))})

    def predict(self, images: torch.Tensor, sizes: Any, originals: Any) -> list[Any]:
        tensors = self.model.predict_tensors(images, torch.tensor(sizes), torch.tensor(originals))
        found = results(self.header, {name: x.numpy() for name, x in tensors.items()}, originals)
        return [_with_tensors(one) for one in found]


@pytest.mark.parametrize(("method", "options"), FAMILIES)
def test_the_results_of_predict(method: str, options: dict[str, Any]) -> None:
    model = network(method, **options)
    differences = agreement.check_agreement(model, Eager(model), "eager")  # type: ignore[arg-type]
    assert differences
    images, sizes = agreement.example(BATCH, 3, SIZE, seed=0)
    with torch.no_grad():
        found = model.predict(images, sizes, sizes)
    if model.config.output == "detection":
        assert all(len(one) for one in found[:1])


def test_a_file_that_disagrees() -> None:
    model, other = network("atss"), network("atss")
    with torch.no_grad():
        other.bbox_head.scales[0].scale.mul_(1.01)
    with pytest.raises(ExportError, match=r"eager: not written, because it disagrees with PyTorch: .* differ"):
        agreement.check_agreement(model, Eager(other), "eager")  # type: ignore[arg-type]


def test_a_family_without_tensors() -> None:
    with pytest.raises(ConfigError, match="a Cells cannot be exported"):
        Cells.predict_tensors(object.__new__(Cells), *[torch.zeros(1)] * 3)
