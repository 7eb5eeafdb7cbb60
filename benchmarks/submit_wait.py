# SPDX-License-Identifier: Apache-2.0
"""``submit`` then ``result``, one after the other on eight threads, beside a bare ``ThreadPoolExecutor``."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from microflow import flow, task
from microflow.task_runners import ThreadPoolTaskRunner

from . import compare, home_on_disk

THREADS = 8


def add_one(x: int) -> int:
    """As little work as a task can do."""
    return x + 1


increment = task(add_one)


@flow(task_runner=ThreadPoolTaskRunner(max_workers=THREADS))
def submit_often(count: int) -> float:
    """Microseconds that one submitted task takes until its result is here."""
    increment.submit(0).result()  # the pool starts its first thread outside of what is timed
    start = time.perf_counter()
    for x in range(count):
        increment.submit(x).result()
    return (time.perf_counter() - start) / count * 1e6


def bare_pool(count: int) -> float:
    """The same with the pool of the standard library, which keeps no state and no log."""
    with ThreadPoolExecutor(max_workers=THREADS) as pool:
        pool.submit(add_one, 0).result()
        start = time.perf_counter()
        for x in range(count):
            pool.submit(add_one, x).result()
        return (time.perf_counter() - start) / count * 1e6


def measure(smoke: bool) -> dict[str, Any]:
    """Microseconds a submitted task, log on disk."""
    count = 20 if smoke else 2_000
    with home_on_disk():
        return compare(
            lambda: submit_often(count),
            lambda: bare_pool(count),
            what="submit then result, one by one, 8 threads, log on disk",
            beside="the same on a bare ThreadPoolExecutor",
            unit="us",
            smoke=smoke,
        )
