# SPDX-License-Identifier: Apache-2.0
"""From a resume in one process to the paused code's going on in another, beside a byte through a pipe."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from typing import IO, Any

from microflow import flow, pause_flow_run
from microflow.context import FlowRunContext

from . import ROOT, compare, home_on_disk

RESUMER = """
import sys, time
from microflow import resume_flow_run
from microflow.exceptions import NotPausedError, ObjectNotFound

for line in sys.stdin:
    while True:
        time.sleep(0.015)
        moment = time.time()
        try:
            if line.strip() != "ping":
                resume_flow_run(line.strip(), _sync=True)
        except (NotPausedError, ObjectNotFound):
            continue
        print(moment, flush=True)
        break
"""


@flow
def pausing(count: int, ask: Any, answer: Any) -> float:
    """Pauses `count` times; the median of the milliseconds between a resume and what follows the pause."""
    context = FlowRunContext.get()
    assert context is not None
    delays = []
    for _ in range(count):
        ask.write(f"{context.live.run_id}\n")
        ask.flush()
        pause_flow_run(timeout=60)
        continued = time.time()
        delays.append(continued - float(answer.readline()))
    return statistics.median(delays) * 1e3


def ping(count: int, ask: IO[str], answer: IO[str]) -> float:
    """The median of the milliseconds from a moment in the other process to its arrival here."""
    delays = []
    for _ in range(count):
        ask.write("ping\n")
        ask.flush()
        delays.append(float(answer.readline()))
        delays[-1] = time.time() - delays[-1]
    return statistics.median(delays) * 1e3


def measure(smoke: bool) -> dict[str, Any]:
    """Milliseconds from a resume to the pauser."""
    count = 2 if smoke else 50
    with home_on_disk():
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        resumer = subprocess.Popen(
            [sys.executable, "-c", RESUMER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        ask, answer = resumer.stdin, resumer.stdout
        assert ask is not None
        assert answer is not None
        try:
            return compare(
                lambda: pausing(count, ask, answer),
                lambda: ping(count, ask, answer),
                what="from a resume in another process to the pauser",
                beside="from another process through a pipe",
                unit="ms",
                smoke=smoke,
            )
        finally:
            ask.close()
            answer.close()
            resumer.wait()
