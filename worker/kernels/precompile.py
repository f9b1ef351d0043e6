"""The name that images and scripts call; what it does stands in ``worker.models.kernels.precompile``."""

from __future__ import annotations

import sys

from worker.models.kernels.precompile import main

if __name__ == "__main__":
    sys.exit(main())
