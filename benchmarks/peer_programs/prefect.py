# SPDX-License-Identifier: Apache-2.0
"""Prefect, with the server that it starts for itself."""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time

sys.path.pop(0)  # this file has the peer's name
os.environ.update(PREFECT_HOME=tempfile.mkdtemp(), PREFECT_LOGGING_LEVEL="CRITICAL", DO_NOT_TRACK="1")
start = time.perf_counter()
from prefect import flow, task  # noqa: E402 - its import is timed, and needs the settings above

import_time = (time.perf_counter() - start) * 1e3


@task
def increment(x):
    return x + 1


@flow
def call_often(count):
    increment(0)
    start = time.perf_counter()
    for x in range(count):
        increment(x)
    return (time.perf_counter() - start) / count * 1e6


@flow
def submit_often(count):
    increment.submit(0).result()
    start = time.perf_counter()
    for x in range(count):
        increment.submit(x).result()
    return (time.perf_counter() - start) / count * 1e6


@flow
def map_many(count):
    start = time.perf_counter()
    increment.map(range(count)).wait()
    return (time.perf_counter() - start) / count * 1e6


@flow
def nothing():
    pass


def empty_flow(count):
    times = []
    for _ in range(count):
        start = time.perf_counter()
        nothing()
        times.append((time.perf_counter() - start) * 1e6)
    return statistics.median(times)  # now and then one waits for seconds for what its server still has to do


figures = {
    "import_time": import_time,
    "task_call": call_often(200),
    "submit_wait": submit_often(200),
    "map_wait": map_many(500),
    "empty_flow": empty_flow(5),
}
print(json.dumps(figures))
