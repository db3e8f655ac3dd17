"""``python -m lightning_gradcam``: the command, where its script is not on the path."""

import sys

from lightning_gradcam.record.cli import main

if __name__ == "__main__":
    sys.exit(main())
