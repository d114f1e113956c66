"""Reports which tensors of a file fit a model, and which do not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from focalnet.errors import escaped


@dataclass(frozen=True)
class Report:
    """The comparison of a state dict with a model.

    Args:
        taken: keys of the file that the model has, with the same shape.
        unused: keys of the file that the model does not have.
        missing: keys of the model that the file does not have.
        mismatched: ``"key: (shape in the file) instead of (shape in the model)"``.
    """

    taken: tuple[str, ...]
    unused: tuple[str, ...]
    missing: tuple[str, ...]
    mismatched: tuple[str, ...]

    @property
    def problem(self) -> str | None:
        """Why the model is incomplete, with a few of the keys; None if it is complete."""
        wrong = "; ".join(
            f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for what, keys in (("missing", self.missing), ("of another shape", self.mismatched))
            if keys
        )
        return f"does not fit the model: tensors {wrong}; check the architecture" if wrong else None

    def __str__(self) -> str:
        lines = [f"taken       {len(self.taken)} tensors"]
        for what in ("unused", "missing", "mismatched"):
            keys = getattr(self, what)
            lines.append(f"{what:<11} {len(keys)}" + "".join(f"\n  {escaped(key)}" for key in keys))
        return "\n".join(lines)


def compare(
    given: Mapping[str, Tensor],
    model: Mapping[str, Tensor],
    *,
    unused: Collection[str] = (),
    new: Collection[str] = (),
) -> Report:
    """Compares a state dict with a model's.

    Args:
        given: tensors of a file under our names.
        model: state dict of the model; may be on meta.
        unused: keys of the file that were dropped before.
        new: keys of the model that may keep their initial values.
    """
    shared = [key for key in model if key in given]
    fits = [key for key in shared if given[key].shape == model[key].shape]
    return Report(
        taken=tuple(fits),
        unused=(*unused, *(key for key in given if key not in model)),
        missing=tuple(key for key in model if key not in given and key not in new),
        mismatched=tuple(
            f"{key}: {tuple(given[key].shape)} instead of {tuple(model[key].shape)}"
            for key in shared
            if given[key].shape != model[key].shape
        ),
    )
