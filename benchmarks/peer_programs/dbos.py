# SPDX-License-Identifier: Apache-2.0
"""DBOS on SQLite: a step called in a workflow, an empty workflow, a workflow that is started and waited for."""

from __future__ import annotations

import json
import sys
import tempfile
import time

sys.path.pop(0)  # this file has the peer's name
start = time.perf_counter()
from dbos import DBOS  # noqa: E402 - its import is timed

import_time = (time.perf_counter() - start) * 1e3
DBOS(
    config={
        "name": "benchmark",
        "system_database_url": f"sqlite:///{tempfile.mkdtemp()}/system.sqlite",
        "log_level": "CRITICAL",
        "run_admin_server": False,
    }
)


@DBOS.step()
def increment(x):
    return x + 1


@DBOS.workflow()
def call_often(count):
    increment(0)
    start = time.perf_counter()
    for x in range(count):
        increment(x)
    return (time.perf_counter() - start) / count * 1e6


@DBOS.workflow()
def nothing():
    pass


def timed(action, count):
    start = time.perf_counter()
    for _ in range(count):
        action()
    return (time.perf_counter() - start) / count * 1e6


DBOS.launch()
figures = {
    "import_time": import_time,
    "task_call": call_often(300),
    "submit_wait": timed(lambda: DBOS.start_workflow(nothing).get_result(), 100),
    "empty_flow": timed(nothing, 100),
}
DBOS.destroy()
print(json.dumps(figures))
