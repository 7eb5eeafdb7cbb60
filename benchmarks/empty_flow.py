# SPDX-License-Identifier: Apache-2.0
"""A flow that does nothing, with a log file of its own, beside making a file and writing three lines of JSON to it."""

from __future__ import annotations

import json
import os
import tempfile
import time
from typing import TYPE_CHECKING, Any

from microflow import flow

from . import compare, home_on_disk

if TYPE_CHECKING:
    from pathlib import Path


@flow
def nothing() -> None:
    """As little as a flow can do."""


def run_often(count: int) -> float:
    """Microseconds that one flow run takes from its call to its end."""
    start = time.perf_counter()
    for _ in range(count):
        nothing()
    return (time.perf_counter() - start) / count * 1e6


def make_files(folder: Path, count: int) -> float:
    """Microseconds that a file of three lines takes."""
    inside = tempfile.mkdtemp(dir=folder)
    start = time.perf_counter()
    for number in range(count):
        file = os.open(f"{inside}/{number}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        for line in range(3):
            os.write(file, json.dumps({"q": line, "b": [{"k": "state", "type": "RUNNING"}]}).encode() + b"\n")
        os.close(file)
    return (time.perf_counter() - start) / count * 1e6


def measure(smoke: bool) -> dict[str, Any]:
    """Microseconds a flow run."""
    count = 5 if smoke else 500
    with home_on_disk() as folder:
        return compare(
            lambda: run_often(count),
            lambda: make_files(folder, count),
            what="an empty flow run with a log file of its own",
            beside="a new file and three JSON lines",
            unit="us",
            smoke=smoke,
            profiled=(lambda: run_often(count), count),
        )
