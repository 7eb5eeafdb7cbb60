# SPDX-License-Identifier: Apache-2.0
"""``python -m microflow ls`` over ten thousand flow runs of a hundred task runs each, beside looking at their files.

The runs are real ones, which takes a minute and a half before anything is measured.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from microflow import flow

from . import ROOT, compare, home_on_disk
from .task_call import increment

if TYPE_CHECKING:
    from pathlib import Path

LOOK = """
import json, os, sys
for entry in sorted(os.scandir(sys.argv[1]), key=lambda entry: entry.name):
    with open(entry.path, "rb") as file:
        first = json.loads(file.readline())
        file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
        last = json.loads(file.read().splitlines()[-1])
    print(first["b"][0]["name"], last["b"][0]["type"])
"""


@flow
def calls(count: int) -> None:
    """Calls the task `count` times."""
    for x in range(count):
        increment(x)


def seconds_of(*arguments: str, lines: int) -> float:
    """How long a Python process takes, its start included; it prints so many lines."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=True)
    taken = time.perf_counter() - start
    assert done.stdout.count(b"\n") == lines, done.stderr
    return taken


def look_at_files(home: Path, count: int) -> float:
    """Seconds that a program takes which reads as JSON the first and the last line of each log, and checks nothing."""
    return seconds_of("-c", LOOK, str(home / "runs"), lines=count)


def measure(smoke: bool) -> dict[str, Any]:
    """Seconds a listing."""
    runs, tasks = (20, 20) if smoke else (10_000, 100)
    with home_on_disk() as home:
        for _ in range(runs):
            calls(tasks)
        return compare(
            lambda: seconds_of("-m", "microflow", "ls", lines=runs + 1),
            lambda: look_at_files(home, runs),
            what=f"`ls` over {runs:,} flow runs of {tasks} task runs",
            beside="first and last lines as JSON",
            unit="s",
            smoke=smoke,
        )
