"""What classes are called."""

from __future__ import annotations


def class_name(names: tuple[str, ...], label: int) -> str:
    """Of a class, ``"class 3"`` where it is unknown."""
    return names[label] if label < len(names) else f"class {label}"
