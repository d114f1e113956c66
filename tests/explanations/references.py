"""Makes ``references.safetensors``: what pytorch-grad-cam, captum and Quantus compute on the case of ``cases.py``.

    pip install grad-cam captum quantus
    python -m tests.explanations.references

They are not among the development dependencies: pytorch-grad-cam and Quantus need another OpenCV than the one without
windows that the library uses, and together they bring eleven packages. The versions are in the header of the file.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.explanations import cases

FILE = Path(__file__).with_name("references.safetensors")


def main() -> None:
    torch.manual_seed(0)
    tensors = {**cams(), **integrated_gradients(), **road(), **confidence(), **quantus_measures(), **sensitivity()}
    versions = {name: version(name) for name in ("grad-cam", "captum", "quantus", "torch")}
    save_file({key: torch.as_tensor(np.asarray(value)).contiguous() for key, value in tensors.items()}, FILE, versions)


class _Targets(torch.nn.Module):
    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def forward(self, output: Tensor) -> Tensor:
        return output[self.label]


class _Probability(_Targets):
    def forward(self, output: Tensor) -> Tensor:
        return output.softmax(-1)[self.label]


def cams() -> dict[str, Any]:
    """Scaled to 0 to 1 and resized to the image, as ``GradCAM`` and its relatives return them."""
    from pytorch_grad_cam import GradCAM, HiResCAM, LayerCAM, ScoreCAM

    found = {}
    for name, method in {
        "grad_cam": GradCAM,
        "hires_cam": HiResCAM,
        "layer_cam": LayerCAM,
        "score_cam": ScoreCAM,
    }.items():
        model = cases.network()
        with method(model, [model.norm], reshape_transform=lambda x: x.permute(0, 3, 1, 2)) as cam:
            found[name] = cam(cases.images(), [_Targets(label) for label in cases.LABELS])
    return found


def integrated_gradients() -> dict[str, Any]:
    from captum.attr import IntegratedGradients

    found = IntegratedGradients(cases.network()).attribute(cases.images(), target=list(cases.LABELS), n_steps=50)
    return {"integrated_gradients": found.detach().sum(1).float()}


def road() -> dict[str, Any]:
    from pytorch_grad_cam.metrics.perturbation_confidence import (
        PerturbationConfidenceMetric,
        RemoveLeastRelevantFirst,
        RemoveMostRelevantFirst,
    )
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    imputer = NoisyLinearImputer(noise=0)
    found: dict[str, Any] = {}
    gone = cases.maps() >= cases.maps().flatten(1).quantile(0.3, dim=1)[:, None, None]
    found["imputed"] = torch.stack([imputer(x, (~m).float()) for x, m in zip(cases.images(), gone, strict=True)])
    targets = [_Probability(label) for label in cases.LABELS]
    for name, remove in (("morf", RemoveMostRelevantFirst), ("lerf", RemoveLeastRelevantFirst)):
        scores = [
            PerturbationConfidenceMetric(remove(percentile, imputer))(
                cases.images(), cases.maps().numpy(), targets, cases.network(), return_diff=False
            )
            for percentile in range(10, 100, 10)
        ]
        found[f"road_{name}"] = np.mean(scores, axis=0)
    return found


def confidence() -> dict[str, Any]:
    from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence, IncreaseInConfidence

    low, high = cases.maps().flatten(1).aminmax(dim=1)
    scaled = ((cases.maps() - low[:, None, None]) / (high - low)[:, None, None]).numpy()
    targets = [_Probability(label) for label in cases.LABELS]
    arguments = cases.images(), scaled, targets, cases.network()
    return {"drop": DropInConfidence()(*arguments), "increase": IncreaseInConfidence()(*arguments)}


def quantus_measures() -> dict[str, Any]:
    import quantus
    from quantus.functions.similarity_func import correlation_spearman

    kwargs = {"abs": False, "normalise": False, "disable_warnings": True, "display_progressbar": False}
    arrays = {"y_batch": np.array(cases.LABELS), "a_batch": cases.maps().numpy()[:, None]}
    model = cases.network(in_chans=1)
    gray = {"model": model, "x_batch": cases.images(1).numpy(), **arrays}
    masks = cases.inside().numpy()[:, None]
    flipping = quantus.PixelFlipping(features_in_step=16, perturb_baseline=0.0, **kwargs)

    def explain(model: Any, inputs: Any, targets: Any, **_: Any) -> np.ndarray:
        pixels = torch.as_tensor(inputs).requires_grad_()
        score = model(pixels).gather(1, torch.as_tensor(targets)[:, None]).sum()
        return torch.autograd.grad(score, pixels)[0].numpy()

    mprt = quantus.MPRT(similarity_func=correlation_spearman, return_average_correlation=False, seed=7, **kwargs)
    correlations = mprt(**{**gray, "a_batch": None}, explain_func=explain)
    return {
        "pixel_flipping": np.array(flipping(**gray, softmax=True)),
        "pointing_game": np.array(quantus.PointingGame(**kwargs)(**gray, s_batch=masks)).astype(float),
        "energy_inside": np.array(quantus.RelevanceMassAccuracy(**kwargs)(**gray, s_batch=masks)),
        "gini": np.array(quantus.Sparseness(**kwargs)(**gray)),
        "entropy": np.array(quantus.Complexity(**kwargs)(**gray)),
        "mprt": np.array([row for name, row in correlations.items() if name != "original"]),
        "spearman": np.array([correlation_spearman(*(m.flatten() for m in cases.maps().numpy().round(2)))]),
    }


def sensitivity() -> dict[str, Any]:
    from captum.metrics import sensitivity_max

    model, samples = cases.network(), 4
    generator = torch.Generator().manual_seed(0)
    shifts = torch.stack(
        [0.02 * (2 * torch.rand(cases.images().shape, generator=generator) - 1) for _ in range(samples)]
    )

    def perturb(inputs: Any) -> Tensor:
        return _one(inputs) + shifts.transpose(0, 1).flatten(0, 1)

    def explain(inputs: Any, **_: Any) -> tuple[Tensor, ...]:
        pixels = _one(inputs).detach().requires_grad_()
        with torch.enable_grad():
            return (torch.autograd.grad(model(pixels)[:, 1].sum(), pixels)[0].sum(1),)

    found = sensitivity_max(explain, cases.images(), perturb, n_perturb_samples=samples, max_examples_per_batch=100)
    return {"max_sensitivity": found}


def _one(inputs: Any) -> Tensor:
    """Captum gives tensors to some functions, and tuples of one to others."""
    return inputs[0] if isinstance(inputs, tuple) else inputs


if __name__ == "__main__":
    main()
