# SPDX-License-Identifier: Apache-2.0
"""A task called in a blocking flow whose log is on disk, beside one line of JSON and its ``os.write``."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

from microflow import flow, task

from . import compare, home_on_disk

if TYPE_CHECKING:
    from pathlib import Path


@task
def increment(x: int) -> int:
    """As little work as a task can do."""
    return x + 1


@flow
def call_often(count: int) -> float:
    """Microseconds that one call takes, the flow's own start and end not counted."""
    start = time.perf_counter()
    for x in range(count):
        increment(x)
    return (time.perf_counter() - start) / count * 1e6


def write_often(folder: Path, count: int) -> float:
    """Microseconds that one JSON line about as long as a log's takes to encode and hand to the kernel."""
    file = os.open(folder / "lines", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        start = time.perf_counter()
        for x in range(count):
            line = json.dumps({"q": x, "t": 1_763_690_000_000_000, "b": [{"k": "state", "type": "COMPLETED"}]})
            os.write(file, line.encode() + b"\n")
        return (time.perf_counter() - start) / count * 1e6
    finally:
        os.close(file)


def measure(smoke: bool) -> dict[str, Any]:
    """Microseconds a task."""
    count = 20 if smoke else 3_000
    with home_on_disk() as folder:
        return compare(
            lambda: call_often(count),
            lambda: write_often(folder, count),
            what="a task called in a blocking flow, log on disk",
            beside="one JSON line and one os.write",
            unit="us",
            smoke=smoke,
            profiled=(lambda: call_often(count), count),
        )
