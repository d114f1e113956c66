"""``focalnet.runtime`` without PyTorch: results of every type are those of ``focalnet.Predictor``, as JSON.

The network's outputs are recorded, so that nothing is exported; ``test_files.py`` runs a real file without PyTorch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import focalnet
from focalnet.exporting.exporting import _header
from focalnet.exporting.tracing import Trace
from focalnet.runtime.preprocess import pad, preprocess
from tests.exporting.networks import network

CASES: list[tuple[str, dict[str, Any]]] = [
    ("classifier", {}),
    ("atss", {}),
    ("mask_rcnn", {}),
    ("upernet", {}),
    ("mask2former", {"segments": "instance", "num_things": 2}),
    ("mask2former", {"segments": "panoptic", "num_things": 2, "object_threshold": 0.0}),
]
NEEDED = "numpy,PIL,focalnet"
RUN = """
import json, sys
installed = set(sys.stdlib_module_names) | set(sys.argv[1].split(","))
class Others:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in installed:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Others())
from pathlib import Path
import numpy as np
from focalnet.runtime import predictor
from focalnet.runtime.header import Header
class Recorded:
    def __init__(self, path, threads=None):
        self.header, self.arrays = Header.from_json(path.with_suffix(".json").read_text(), path), np.load(path)
    def __call__(self, inputs):
        for name in self.header.inputs:
            assert np.abs(inputs[name] - self.arrays["in_" + name]).max() < 1e-5
        return {name: self.arrays[name] for name in self.header.outputs}
predictor.open_session = Recorded
for path in sys.argv[3:]:
    result = predictor.Predictor(Path(path))(sys.argv[2])
    print(json.dumps({"result": result.to_dict(), "summary": result.summary()}))
"""


def record(model: focalnet.models.Model, photo: Path, path: Path) -> None:
    """Writes the inputs and outputs of a network for an image, and the metadata that its file would have."""
    with Image.open(photo) as image:
        array = preprocess(image, model.card.preprocessing)
        original = np.array([(image.height, image.width)])
    inputs = {
        "images": pad([array], model.config.size_divisor),
        "sizes": np.array([array.shape[1:]]),
        "original_sizes": original,
    }
    with torch.no_grad():
        tensors = model.predict_tensors(*map(torch.from_numpy, inputs.values()))
    outputs = {name: values.numpy() for name, values in tensors.items()}
    names = tuple(inputs) if model.config.output != "classification" else ("images",)
    header = _header(model, Trace(None, names, tuple(outputs), 1))  # type: ignore[arg-type]
    path.with_suffix(".json").write_text(header.to_json())
    np.savez(path, **{f"in_{name}": values for name, values in inputs.items()}, **outputs)


def close(value: Any) -> Any:
    """The value, whose numbers equal others up to rounding."""
    if isinstance(value, dict):
        return {key: close(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [close(one) for one in value]
    return pytest.approx(value, abs=2e-3) if isinstance(value, float) else value


def test_results_without_torch(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    photo = tmp_path / "photo.png"
    Image.fromarray(pixels).resize((128, 96)).save(photo)  # as the networks take it, so that nothing is resized
    paths, expected = [], []
    for i, (method, options) in enumerate(CASES):
        model = network(method, **options)
        paths.append(tmp_path / f"{i}.npz")
        record(model, photo, paths[-1])
        result = focalnet.Predictor(model, "cpu")(photo)
        expected.append({"result": json.loads(json.dumps(result.to_dict())), "summary": result.summary()})
    command = [sys.executable, "-c", RUN, NEEDED, str(photo), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    actual = [json.loads(line) for line in done.stdout.splitlines()]
    for (method, _), ours, theirs in zip(CASES, actual, expected, strict=True):
        assert ours["result"] == close(theirs["result"]), method
        assert len(ours["summary"]) == len(theirs["summary"]) > 0
