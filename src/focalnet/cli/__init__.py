"""The command ``focalnet``. Each command is a function in a file of its own that imports torch only when it runs."""

DEFAULT_MODEL = "focalnet_nano.cifar10"  # its weights come with the package
