# SPDX-License-Identifier: Apache-2.0
"""From a resume to the paused code's going on, in one process, beside the waking of a thread."""

from __future__ import annotations

import statistics
import threading
import time
from typing import Any

from microflow import flow, pause_flow_run, resume_flow_run
from microflow.context import FlowRunContext
from microflow.exceptions import NotPausedError

from . import compare, home_on_disk

SETTLE = 0.002  # seconds in which the pauser begins to wait


def resume(run_id: str, moments: list[float]) -> None:
    """Resume the run as soon as it waits, and note when that began."""
    while True:
        time.sleep(SETTLE)
        moment = time.perf_counter()
        try:
            resume_flow_run(run_id, _sync=True)
        except NotPausedError:
            continue
        moments.append(moment)
        return


@flow
def pausing(count: int) -> float:
    """Pauses `count` times; the median of the milliseconds between a resume and what follows the pause."""
    context = FlowRunContext.get()
    assert context is not None
    delays: list[float] = []
    for _ in range(count):
        moments: list[float] = []
        thread = threading.Thread(target=resume, args=(context.live.run_id, moments))
        thread.start()
        pause_flow_run(timeout=60)
        continued = time.perf_counter()
        thread.join()
        delays.append(continued - moments[0])
    return statistics.median(delays) * 1e3


def wake(count: int) -> float:
    """The median of the milliseconds between the setting of an event and the going on of a thread that waits for it."""
    delays: list[float] = []
    for _ in range(count):
        moments: list[float] = []
        event = threading.Event()

        def ring(event: threading.Event = event, moments: list[float] = moments) -> None:
            time.sleep(SETTLE)
            moments.append(time.perf_counter())
            event.set()

        thread = threading.Thread(target=ring)
        thread.start()
        event.wait(60)
        delays.append(time.perf_counter() - moments[0])
        thread.join()
    return statistics.median(delays) * 1e3


def measure(smoke: bool) -> dict[str, Any]:
    """Milliseconds from a resume to the pauser."""
    count = 3 if smoke else 100
    with home_on_disk():
        return compare(
            lambda: pausing(count),
            lambda: wake(count),
            what="from a resume to the pauser, in one process",
            beside="from the setting of an event to the thread that waits",
            unit="ms",
            smoke=smoke,
        )
