"""What an architecture costs, counted on parts of it; ``parity/test_model_table.py`` has the official figures."""

from __future__ import annotations

import pytest
import torch

from focalnet import registry
from focalnet.models.variants import VARIANTS
from focalnet.zoo import cost, create_model


@pytest.mark.parametrize("name", registry.names()[len(VARIANTS) :: 7])  # every method, on trunks of every width
def test_parameters_are_those_of_the_whole_network(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=7)
    assert cost(name, num_classes=7).params == sum(p.numel() for p in model.parameters())
