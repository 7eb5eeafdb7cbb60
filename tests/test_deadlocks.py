# SPDX-License-Identifier: Apache-2.0
"""Blocking waits that would never end are refused, and only those."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import Any
from uuid import uuid4

import pytest

from microflow import flow, task
from microflow._arguments import quote
from microflow._deadlocks import One, blocking, needs
from microflow._waits import SLOT
from microflow.futures import ConcurrentFuture, FutureList, as_completed, wait
from microflow.task_runners import ThreadPoolTaskRunner
from tests.support import PATIENCE, memory_home


@pytest.fixture(autouse=True)
def _memory(monkeypatch):
    memory_home(monkeypatch)


@task
async def on_the_loop(begun: Any, event: Any) -> str:
    begun.set()
    await event.wait()
    return "child"


@task
def after(upstream):
    return upstream


async def started(number: int = 1) -> tuple[Any, list[Any]]:
    """Children that run on the loop of the caller, and the event that they wait for."""
    event, begun = asyncio.Event(), asyncio.Event()
    futures = [on_the_loop.submit(quote(begun), quote(event)) for _ in range(number)]
    while not all(future.wrapped_future.running() for future in futures):  # noqa: ASYNC110 - on this very loop
        await asyncio.sleep(0)
    return event, futures


def run_parent(parent: Any, workers: int = 4) -> Any:
    return flow(task_runner=ThreadPoolTaskRunner(max_workers=workers))(lambda: task(parent).submit().result())()


HOW = pytest.mark.parametrize(
    "block",
    [
        lambda future: future.result(),
        lambda future: future.result(timeout=PATIENCE),
        lambda future: FutureList([future]).result(),
        lambda future: wait([future]),
        lambda future: list(as_completed([future])),
    ],
    ids=["result", "timeout", "list-result", "wait", "as-completed"],
)


@HOW
def test_a_wait_for_a_dependent_of_what_runs_on_the_blocked_loop_is_refused(block):
    """The dependent has not started; a dependent of a dependent neither."""

    async def parent():
        event, (child,) = await started()
        last = after.submit(after.submit(child))
        with pytest.raises(RuntimeError, match="await future"):
            block(last)
        event.set()
        return await last

    assert run_parent(parent) == "child"


@pytest.mark.parametrize("blocked_first", [True, False])
def test_a_wait_for_a_run_that_waits_for_what_runs_on_the_blocked_loop_is_refused(blocked_first):
    """Whoever closes the circle is told; the others get its failure, or go on."""
    asked, told = threading.Event(), list[str]()

    @task
    def between(child, go):
        go.wait(PATIENCE)
        asked.set()
        try:
            return child.result()
        except RuntimeError as error:
            told.append(str(error))
            raise

    async def parent():
        event, (child,) = await started()
        go = threading.Event()
        future = between.submit(quote(child), quote(go))
        if blocked_first:
            threading.Timer(0.05, go.set).start()
        else:
            go.set()
            asked.wait(PATIENCE)
            threading.Event().wait(0.05)  # it blocks by now
        try:
            future.result()
        except RuntimeError as error:
            if not told:
                told.append(str(error))
        event.set()
        await child
        return len(told)

    assert run_parent(parent) == 1
    assert "await future" in told[0]


def test_one_of_several_that_can_be_done_is_enough_for_as_completed():
    """The others are refused only when nothing else is left; what awaits in between lets them end."""

    async def parent():
        event, children = await started(3)
        seen = []
        completed = as_completed([*children, after.submit(1), after.submit(2), *map(after.submit, children)])
        seen.extend([next(completed).result(), next(completed).result()])
        with pytest.raises(RuntimeError, match="await future"):
            next(completed)
        event.set()
        await asyncio.gather(*children)
        return sorted(seen)

    assert run_parent(parent) == [1, 2]


def test_those_who_may_end_are_not_asked_again_at_each_step(monkeypatch):
    """A loop thread that collects many futures looks at each a bounded number of times."""
    looked: list[int] = []
    real = needs
    many = 2000

    def counting(futures, job):
        futures = list(futures)
        looked.append(len(futures))
        return real(futures, job)

    monkeypatch.setattr("microflow._arrivals.needs", counting)

    async def parent():
        event, children = await started(5)
        release = threading.Event()
        held = task(lambda x: release.wait(PATIENCE) and x).map(range(many))
        threading.Timer(0.01, release.set).start()
        completed = as_completed([*children, *held])
        count = sum(1 for _ in zip(range(many), completed, strict=False))
        event.set()
        return count

    assert run_parent(parent, workers=8) == many
    assert sum(looked) <= 3 * many


def test_runs_that_stand_still_on_a_blocked_loop_lend_their_slots():
    """Two coroutines have both slots; a third one comes back from a wait over the limit and blocks their loop."""

    gate: ConcurrentFuture[Any] = ConcurrentFuture(uuid4(), Future())
    begun: list[int] = []

    @task
    async def sleeper(event, number):
        begun.append(number)
        if len(begun) == 2:
            gate.wrapped_future.set_result(None)
        await event.wait()

    async def parent():
        event = asyncio.Event()
        sleepers = [sleeper.submit(quote(event), number) for number in (1, 2)]
        await gate
        value = after.submit(5).result()
        event.set()
        await asyncio.gather(*sleepers)
        return value

    assert run_parent(parent, workers=2) == 5


def test_outside_of_submitted_runs_nothing_is_looked_at():
    class Unknown:
        pass

    assert SLOT.get() is None
    with blocking(One(Unknown())):
        pass
    assert not needs([Unknown()], Unknown())  # type: ignore[arg-type]
