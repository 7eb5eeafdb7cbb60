# SPDX-License-Identifier: Apache-2.0
"""What stays in memory of a finished task run whose value nobody holds, beside the UUID of each in a list."""

from __future__ import annotations

import gc
import tracemalloc
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from microflow import flow

from . import compare, home_on_disk
from .task_call import increment

if TYPE_CHECKING:
    from collections.abc import Callable


def bytes_left(fill: Callable[[int], object], count: int) -> float:
    """How many bytes one of `count` things leaves behind while what made them goes on."""
    fill(count // 10)  # what is made once
    gc.collect()
    tracemalloc.start()
    kept = fill(count)
    gc.collect()
    left, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return left / count


def call_all(count: int) -> None:
    """Run `count` tasks and drop what they return."""
    for x in range(count):
        increment(x)


@flow
def in_a_flow(count: int) -> float:
    """Bytes a task run, measured inside of the flow run that they belong to."""
    return bytes_left(call_all, count)


def measure(smoke: bool) -> dict[str, Any]:
    """Bytes a finished task run."""
    count = 100 if smoke else 20_000
    with home_on_disk():
        return compare(
            lambda: in_a_flow(count),
            lambda: bytes_left(lambda number: [uuid4() for _ in range(number)], count),
            what="memory that a finished task run keeps while its flow runs",
            beside="a UUID in a list",
            unit="bytes",
            smoke=smoke,
        )
