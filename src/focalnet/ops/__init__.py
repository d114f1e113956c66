"""Tensors in, tensors out. Nothing here knows a module, a file or a name."""
