"""Functions of tensors. Nothing here depends on modules, files or class names."""
