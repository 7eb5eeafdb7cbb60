# SPDX-License-Identifier: Apache-2.0
"""Tasks for workers in other processes. Those that write leave witnesses in a folder."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from microflow import task
from microflow.context import TaskRunContext, current_tags
from microflow.states import Completed


@task
def add(x: Any, y: Any = 1) -> Any:
    return x + y


@task
async def add_async(x: Any, y: Any = 1) -> Any:
    await asyncio.sleep(0)
    return x + y


@task
def total(*values: Any, **named: Any) -> Any:
    return sum(values) + sum(named.values())


@task
def parts_of(thing: Any) -> Any:
    return (thing[0] if isinstance(thing, list) else thing).value, thing


@task
def fail(words: str = "no") -> None:
    raise ValueError(words)


@task
def seen() -> dict[str, Any]:
    context = TaskRunContext.get()
    assert context is not None
    return {"tags": sorted(current_tags()), "run": str(context.task_run.id), "pid": os.getpid()}


@task
def when_told(folder: str, name: str) -> str:
    """Says that it runs, waits until it is told to end, says that it has ended."""
    place = Path(folder)
    (place / f"{name}.begun").touch()
    while not (place / f"{name}.go").exists():
        time.sleep(0.002)
    (place / f"{name}.ended").touch()
    return name


@task
def witnessed(folder: str, number: int) -> int:
    """Writes when it began and when it ended, and in which process."""
    with open(Path(folder) / str(number), "ab", buffering=0) as witness:
        witness.write(b"begin %d %d\n" % (os.getpid(), time.time_ns()))
        time.sleep(0.015)
        witness.write(b"end %d %d\n" % (os.getpid(), time.time_ns()))
    return number


@task
def identity(x: Any) -> Any:
    return x


@task
def pair(x: Any, y: Any = (1, 4)) -> Any:
    return (x, y)


@task
def keywords(x: Any, **more: Any) -> Any:
    return (x, more)


@task
def returned_state() -> Any:
    return [Completed(data=5)]


@task
async def parent_of_a_failure() -> Any:
    return await fail_async()


@task
async def fail_async() -> None:
    raise ValueError("of the child")


TASKS = (
    add,
    add_async,
    fail,
    fail_async,
    identity,
    keywords,
    pair,
    parent_of_a_failure,
    returned_state,
    seen,
    total,
    when_told,
    witnessed,
)
