# SPDX-License-Identifier: Apache-2.0
"""Without threads, submitted tasks run in place: at once, or on the running loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from microflow import _deadlocks, flow, task
from microflow.context import FlowRunContext
from microflow.task_runners import ThreadPoolTaskRunner


@pytest.fixture(autouse=True)
def no_threads(monkeypatch):
    """The system refuses every thread, as Pyodide does."""

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(_deadlocks, "only_thread", None)


@task
def square(x):
    return x * x


@task
async def async_square(x):
    return x * x


def test_submit_runs_at_once_and_gives_a_future_that_is_done():
    @flow
    def main():
        future = square.submit(3)
        assert future.state.is_completed()
        return future.result(), square.map([1, 2, 3]).result(), async_square.submit(4).result()

    assert main() == (9, [1, 4, 9], 16)


def test_a_task_may_submit_and_wait_with_one_worker():
    @task
    def parent(depth):
        return depth if not depth else parent.submit(depth - 1).result() + 1

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=1))
    def main():
        return parent.submit(5).result()

    assert main() == 5


def test_a_chain_of_dependents_needs_no_recursion():
    """Each waits for the one before; the first is held back by a coroutine task that has not run yet."""

    @flow
    async def main():
        future = async_square.submit(1)
        for _ in range(3000):
            future = square.submit(future)
        return await future

    assert asyncio.run(main()) == 1


def test_coroutine_tasks_run_beside_each_other_on_the_loop():
    order = []

    @task
    async def visit(name):
        order.append(name)
        await asyncio.sleep(0)
        order.append(name)

    @flow
    async def main():
        first, second = visit.submit("a"), visit.submit("b")
        await first
        await second

    asyncio.run(main())
    assert order == ["a", "b", "a", "b"]


def test_a_blocking_wait_for_a_coroutine_task_is_refused_and_says_what_to_do():
    @flow
    async def main():
        future = async_square.submit(1)
        with pytest.raises(RuntimeError, match="await future"):
            future.result()
        return await future

    assert asyncio.run(main()) == 1


def test_a_failure_is_the_futures_and_the_next_task_runs():
    @task
    def fail():
        raise ValueError("no")

    @flow
    def main():
        failed, fine = fail.submit(), square.submit(2)
        with pytest.raises(ValueError, match="no"):
            failed.result()
        return fine.result()

    assert main() == 4


def test_a_coroutine_task_that_nobody_awaited_ends_before_its_flow(monkeypatch):
    futures = []

    @task
    async def forever():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(FlowRunContext.get().flow_run.state_name)

    ended = []

    @flow
    async def main():
        futures.append(forever.submit())
        await asyncio.sleep(0)
        return "ended"

    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(main()) == "ended"
    assert ended == ["Running"]
    assert asyncio.all_tasks(loop) == set()
    loop.close()
    assert futures[0].state.is_crashed()
