"""Text files as editors write them."""

from focalnet.reading import read_text

__all__ = ["read_text"]
