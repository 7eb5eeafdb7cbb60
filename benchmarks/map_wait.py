# SPDX-License-Identifier: Apache-2.0
"""``map`` of ten thousand elements, then ``wait``, beside a bare ``ThreadPoolExecutor`` that is given as many calls."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from microflow import flow
from microflow.task_runners import ThreadPoolTaskRunner

from . import compare, home_on_disk
from .submit_wait import THREADS, add_one, increment


@flow(task_runner=ThreadPoolTaskRunner(max_workers=THREADS))
def map_many(count: int) -> float:
    """Microseconds that one element takes, from the call of ``map`` until all are done."""
    start = time.perf_counter()
    increment.map(range(count)).wait()
    return (time.perf_counter() - start) / count * 1e6


def bare_pool(count: int) -> float:
    """The same with the pool of the standard library, which keeps no state and no log."""
    with ThreadPoolExecutor(max_workers=THREADS) as pool:
        start = time.perf_counter()
        wait([pool.submit(add_one, x) for x in range(count)])
        return (time.perf_counter() - start) / count * 1e6


def measure(smoke: bool) -> dict[str, Any]:
    """Microseconds an element, log on disk."""
    count = 50 if smoke else 10_000
    with home_on_disk():
        return compare(
            lambda: map_many(count),
            lambda: bare_pool(count),
            what=f"map of {count:,}, then wait, 8 threads, log on disk",
            beside="the same on a bare ThreadPoolExecutor",
            unit="us",
            smoke=smoke,
        )
