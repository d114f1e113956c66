"""The command line ``focalnet``. Each command is a function in its own file, and imports torch only when it runs."""

DEFAULT_MODEL = "focalnet_nano.cifar10"  # its weights come with the package
