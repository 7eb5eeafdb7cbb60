# SPDX-License-Identifier: Apache-2.0
"""Handing back ten thousand ended calls in a re-execution, beside reading as many JSON lines."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Any

from microflow import flow, get_client
from microflow.flow_runs import rerun

from . import compare, home_on_disk
from .task_call import increment

if TYPE_CHECKING:
    from microflow.states import State


class Stop(Exception):
    """Ends the first execution."""


first = True


@flow
def counted(count: int) -> float:
    """Calls the task `count` times; fails the first time, and then says how long one call that was handed back took."""
    start = time.perf_counter()
    for x in range(count):
        increment(x)
    if first:
        raise Stop
    return (time.perf_counter() - start) / count * 1e6


def stopped_run(count: int) -> str:
    """A failed flow run with `count` completed calls."""
    global first
    first = True
    logging.disable()  # that the run fails is no news
    state: State[Any] = counted(count, return_state=True)
    logging.disable(logging.NOTSET)
    first = False
    return str(state.state_details.flow_run_id)


def hand_back(count: int) -> float:
    """Microseconds that one call takes which ended in an earlier execution."""
    state: State[Any] = rerun(counted, stopped_run(count), force=True)
    return float(state.result())  # type: ignore[arg-type]  # no coroutine: nothing runs here any more


def read_log(count: int) -> float:
    """Microseconds that opening a log takes for each of its records, with as many calls in it."""
    run_id = stopped_run(count)
    client = get_client(sync_client=True)
    client.store.close(run_id)
    start = time.perf_counter()
    run = client.fold(run_id)
    return (time.perf_counter() - start) / sum(1 + len(task.states) for task in run.tasks.values()) * 1e6


def read_lines(count: int) -> float:
    """Microseconds that ``json.loads`` takes for a line of a log."""
    line = json.dumps(
        {"q": 1, "p": "89abcdef", "e": 1, "t": 1_763_690_000_000_000, "b": [{"k": "state", "type": "COMPLETED"}]}
    )
    start = time.perf_counter()
    for _ in range(count):
        json.loads(line)
    return (time.perf_counter() - start) / count * 1e6


def measure(smoke: bool) -> dict[str, Any]:
    """Microseconds a call."""
    count = 20 if smoke else 10_000
    with home_on_disk():
        ended = "" if smoke else stopped_run(count)
        return compare(
            lambda: hand_back(count),
            lambda: read_lines(count),
            what=f"a call handed back in a re-execution over {count:,}",
            beside="json.loads of a line",
            unit="us",
            smoke=smoke,
            profiled=(lambda: rerun(counted, ended, force=True), count),
        )
