# SPDX-License-Identifier: MIT
"""``python -m kvmcpu``: the command."""

import sys

from kvmcpu.cli import main

if __name__ == "__main__":
    sys.exit(main())
