# SPDX-License-Identifier: Apache-2.0
"""A coroutine task that is awaited in a coroutine flow, beside one line of JSON and its ``os.write``."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from microflow import flow, task

from . import compare, home_on_disk
from .task_call import write_often


@task
async def increment(x: int) -> int:
    """As little work as a task can do."""
    return x + 1


@flow
async def await_often(count: int) -> float:
    """Microseconds that one awaited call takes, the flow's own start and end not counted."""
    start = time.perf_counter()
    for x in range(count):
        await increment(x)
    return (time.perf_counter() - start) / count * 1e6


def measure(smoke: bool) -> dict[str, Any]:
    """Microseconds a task."""
    count = 20 if smoke else 3_000
    with home_on_disk() as folder:
        return compare(
            lambda: asyncio.run(await_often(count)),
            lambda: write_often(folder, count),
            what="a coroutine task awaited in a coroutine flow, log on disk",
            beside="one JSON line and one os.write",
            unit="us",
            smoke=smoke,
            profiled=(lambda: asyncio.run(await_often(count)), count),
        )
