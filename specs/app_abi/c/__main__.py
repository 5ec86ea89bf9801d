# SPDX-License-Identifier: BSD-2-Clause
"""Makes the files for C anew: ``python -m specs.app_abi.c specs/app_abi/c``."""

from __future__ import annotations

import sys
from pathlib import Path

from specs.app_abi.c import FILES
from specs.app_abi.c.generate import generate


def main(directory: str) -> None:
    """Write the generated files into ``directory``."""
    for name in FILES:
        Path(directory, name).write_text(generate(name), "utf-8", newline="\n")


if __name__ == "__main__":
    main(sys.argv[1])
