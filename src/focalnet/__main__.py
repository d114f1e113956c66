"""``python -m focalnet``: the command line."""

import sys

from focalnet.cli.main import main

sys.exit(main())
