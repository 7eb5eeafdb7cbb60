# SPDX-License-Identifier: Apache-2.0
"""Without threads, submitted tasks run in place: at once, or on the running loop; and the loop hears of others."""

from __future__ import annotations

import asyncio
import threading
from uuid import uuid4

import pytest

from microflow import _deadlocks, _waits, flow, get_client, task
from microflow.context import FlowRunContext
from microflow.flow_runs import pause_flow_run, resume_flow_run, wait_for_flow_run
from microflow.task_runners import ThreadPoolTaskRunner
from microflow.task_runs import TaskRunWaiter

from .kill_support import cli
from .pause_support import own_run_id


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


# ------------------------------------------------------------------------------------------------- news


@flow
async def asks(answered_by):
    """Pauses; the coroutine that answers has its first turn when the pause waits."""
    answerer = asyncio.create_task(answered_by(own_run_id()))
    answer = await pause_flow_run(wait_for_input=int, timeout=60)
    await answerer
    return answer


async def another_coroutine(run_id):
    assert get_client(sync_client=True).read_flow_run(run_id).state.is_paused()
    await resume_flow_run(run_id, {"value": 41})


async def another_process(run_id):
    done = cli("resume", run_id, "--input", '{"value": 41}')
    assert done.returncode == 0, done.stderr


def loops_left(main):
    """What a coroutine gave, and how many tasks it left on its loop."""

    async def outer():
        return await main, len(asyncio.all_tasks()) - 1

    return asyncio.run(outer())


@pytest.mark.parametrize("answered_by", [another_coroutine, another_process])
def test_a_coroutine_flow_hears_of_its_answer_and_leaves_nothing_on_the_loop(answered_by):
    assert loops_left(asks(answered_by)) == (41, 0)


@pytest.mark.parametrize("home", [":memory:", None])
def test_a_pause_of_a_coroutine_flow_is_answered_in_every_home(home, monkeypatch):
    if home is not None:
        monkeypatch.setenv("MICROFLOW_HOME", home)
    assert loops_left(asks(another_coroutine)) == (41, 0)


def test_the_end_of_a_run_can_be_awaited():
    async def main():
        started = asyncio.get_running_loop().create_future()

        @flow
        async def work():
            started.set_result(own_run_id())
            await asyncio.sleep(0)
            return 5

        running = asyncio.create_task(work())
        flow_run = await wait_for_flow_run(await started)
        return flow_run.state.is_completed(), await running

    assert loops_left(main()) == ((True, 5), 0)


@pytest.mark.parametrize("home", [":memory:", None])
def test_a_blocking_pause_where_nobody_could_ever_end_it_is_refused_before_it_is_recorded(home, monkeypatch):
    if home is not None:
        monkeypatch.setenv("MICROFLOW_HOME", home)
    monkeypatch.setattr(_waits, "IS_ALONE", True)

    @flow
    def main():
        with pytest.raises(RuntimeError, match="make it a coroutine and await"):
            pause_flow_run()
        return own_run_id()

    states = get_client(sync_client=True).read_flow_run_states(main())
    assert [state.name for state in states] == ["Pending", "Running", "Completed"]


def test_a_blocking_wait_for_a_run_of_another_process_is_refused(monkeypatch):
    monkeypatch.setattr(_waits, "IS_ALONE", True)
    with pytest.raises(RuntimeError, match="this wait would never end"):
        TaskRunWaiter.block_for_task_run(uuid4())


@pytest.mark.parametrize("alone", [True, False])
def test_blocking_retries_with_a_delay_need_nobody_else(alone, monkeypatch):
    """Nobody can be heard of meanwhile, and nobody has to be."""
    monkeypatch.setattr(_waits, "IS_ALONE", alone)
    attempts = []

    @task(retries=1, retry_delay_seconds=0.01)
    def once_more():
        attempts.append("task")
        assert len(attempts) > 1

    @flow(retries=1, retry_delay_seconds=0.01)
    def main():
        once_more()
        attempts.append("flow")
        assert attempts.count("flow") > 1
        return "done"

    assert main() == "done"
    assert attempts == ["task", "task", "flow", "task", "flow"]
