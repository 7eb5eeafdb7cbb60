# SPDX-License-Identifier: Apache-2.0
"""From ``delay`` in one process to the start of the run in a worker, beside a byte through a pipe.

The worker is idle: it sleeps as long as it ever does between two looks at the queue. What is measured ends with the
first statement of the task, so the claim and the record of Running are in it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from typing import IO, Any

from microflow import task

from . import ROOT, compare, home_on_disk
from .resume_elsewhere import RESUMER, ping

PAUSE = 0.03  # seconds between two runs: three times the longest sleep of an idle worker


@task
def tell_the_time() -> float:
    """When the run begins."""
    return time.time()


def delaying(count: int) -> float:
    """Defers `count` runs, one after the other; the median of the milliseconds until each begins."""
    delays = []
    for _ in range(count):
        time.sleep(PAUSE)
        asked = time.time()
        delays.append(tell_the_time.delay().result(timeout=60) - asked)
    return statistics.median(delays) * 1e3


def measure(smoke: bool) -> dict[str, Any]:
    """Milliseconds from ``delay`` to the start."""
    count = 2 if smoke else 50
    with home_on_disk():
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        serving = [sys.executable, "-m", "microflow", "serve", f"{__name__}:tell_the_time"]
        worker = subprocess.Popen(serving, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL)
        other = subprocess.Popen(
            [sys.executable, "-c", RESUMER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            tell_the_time.delay().wait(60)  # until the worker is there
            ask, answer = _pipes(other)
            return compare(
                lambda: delaying(count),
                lambda: ping(count, ask, answer),
                what="from delay to the start of the run in an idle worker process",
                beside="from another process through a pipe",
                unit="ms",
                smoke=smoke,
            )
        finally:
            worker.terminate()
            worker.wait()
            other.communicate()


def _pipes(other: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert other.stdin is not None
    assert other.stdout is not None
    return other.stdin, other.stdout
