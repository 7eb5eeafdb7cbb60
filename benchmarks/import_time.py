# SPDX-License-Identifier: Apache-2.0
"""``import microflow`` with ``flow`` and ``task`` beside ``import asyncio``, each in fresh interpreters."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from . import ROOT, compare

TIMED = "import time; start = time.perf_counter(); {}; print((time.perf_counter() - start) * 1e3)"


def milliseconds(statements: str, interpreters: int, compiled: str) -> float:
    """The median over some fresh interpreters that find every module compiled in a folder, as a user's do."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-c", TIMED.format(statements)]

    def once() -> float:
        return float(subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True).stdout)

    once()  # compiles
    return statistics.median(once() for _ in range(interpreters))


def measure(smoke: bool) -> dict[str, Any]:
    """Milliseconds of importing microflow and touching its two decorators."""
    interpreters = 1 if smoke else 5
    with tempfile.TemporaryDirectory(prefix="microflow-benchmark-") as compiled:
        return compare(
            lambda: milliseconds("import microflow; microflow.flow; microflow.task", interpreters, compiled),
            lambda: milliseconds("import asyncio", interpreters, compiled),
            what="import microflow with flow and task",
            beside="import asyncio",
            unit="ms",
            smoke=smoke,
        )
