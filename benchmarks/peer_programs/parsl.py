# SPDX-License-Identifier: Apache-2.0
"""Parsl on eight threads."""

from __future__ import annotations

import json
import sys
import tempfile
import time

sys.path.pop(0)  # this file has the peer's name
start = time.perf_counter()
import parsl  # noqa: E402 - its import is timed
from parsl.config import Config  # noqa: E402
from parsl.executors.threads import ThreadPoolExecutor  # noqa: E402

import_time = (time.perf_counter() - start) * 1e3


@parsl.python_app
def increment(x):
    return x + 1


with parsl.load(Config(executors=[ThreadPoolExecutor(max_threads=8)], run_dir=tempfile.mkdtemp(), usage_tracking=0)):
    increment(0).result()
    start = time.perf_counter()
    for x in range(500):
        increment(x).result()
    submit_wait = (time.perf_counter() - start) / 500 * 1e6
    start = time.perf_counter()
    for future in [increment(x) for x in range(5_000)]:
        future.result()
    map_wait = (time.perf_counter() - start) / 5_000 * 1e6
print(json.dumps({"import_time": import_time, "submit_wait": submit_wait, "map_wait": map_wait}))
