"""What became of each tensor of a file: which were taken, and which fit nowhere."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from focalnet.errors import escaped


@dataclass(frozen=True)
class Report:
    """The comparison of a state dict with a model.

    Args:
        taken: keys that the model has with the same shape.
        unused: keys of the file that the model has no place for.
        missing: keys of the model that the file lacks.
        mismatched: ``"key: (shape in the file) instead of (shape in the model)"``.
    """

    taken: tuple[str, ...]
    unused: tuple[str, ...]
    missing: tuple[str, ...]
    mismatched: tuple[str, ...]

    @property
    def problem(self) -> str | None:
        """What keeps the model from being complete, in a sentence that names a few keys; None if nothing does."""
        wrong = "; ".join(
            f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for what, keys in (("missing", self.missing), ("of another shape", self.mismatched))
            if keys
        )
        return f"does not fit the model: tensors {wrong}; is it the architecture you think?" if wrong else None

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
        given: the file's tensors under our names.
        model: the model's; may be on meta.
        unused: keys of the file that were left out before.
        new: keys of the model that may keep their initial value.
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
