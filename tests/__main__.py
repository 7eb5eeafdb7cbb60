# SPDX-License-Identifier: Apache-2.0
"""Every check of the project, one after the other: ``python -m tests``.

Lint, strict types, the benchmarks once around (that they run, not how fast), then the tests, last, so that pytest's
closing line is the last thing on the screen. A check that fails does not hide the others; the exit status is 1 when
any failed. Arguments are handed to pytest.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKS = {
    "lint": ["ruff", "check", "--quiet", "."],
    "types": ["mypy"],
    "benchmarks": ["benchmarks", "--smoke"],
    "tests": ["pytest", "-q"],
}


def main(arguments: list[str]) -> int:
    """Run the checks; return 0 when all of them passed."""
    failed = []
    for name, module_and_options in CHECKS.items():
        command = [*module_and_options, *(arguments if name == "tests" else [])]
        print(f"== {name}: python -m {' '.join(command)}", flush=True)
        if subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False).returncode != 0:
            failed.append(name)
    if failed:
        print(f"== failed: {', '.join(failed)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
