# SPDX-License-Identifier: Apache-2.0
"""``import microflow`` with ``flow`` and ``task`` beside ``import asyncio``, each in fresh interpreters."""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import Any

from . import ROOT, compare

TIMED = "import time; start = time.perf_counter(); {}; print((time.perf_counter() - start) * 1e3)"


def milliseconds(statements: str, interpreters: int) -> float:
    """The median over some fresh interpreters; compiled modules are in place, as they are for a user."""
    command = [sys.executable, "-c", TIMED.format(statements)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    times = [subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout for _ in range(interpreters)]
    return statistics.median(map(float, times))


def measure(smoke: bool) -> dict[str, Any]:
    """Milliseconds of importing microflow and touching its two decorators."""
    interpreters = 1 if smoke else 5
    return compare(
        lambda: milliseconds("import microflow; microflow.flow; microflow.task", interpreters),
        lambda: milliseconds("import asyncio", interpreters),
        what="import microflow with flow and task",
        beside="import asyncio",
        unit="ms",
        smoke=smoke,
    )
