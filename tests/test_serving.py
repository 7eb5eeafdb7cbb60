# SPDX-License-Identifier: Apache-2.0
"""What a deferred task may do while a worker runs it: submit and map, as a task in a flow may."""

from __future__ import annotations

import threading

import pytest

from microflow import flow, task
from microflow.client.orchestration import current_client
from microflow.context import TaskRunContext
from microflow.futures import as_completed
from microflow.worker import TaskWorker
from tests.support import PATIENCE, Colour, both, memory_home


@pytest.fixture(autouse=True)
def home(monkeypatch):
    memory_home(monkeypatch)


@task
def add(x, y=1):
    return x + y


@task
async def add_async(x, y=1):
    return x + y


@task
def parent_ids():
    context = TaskRunContext.get()
    assert context is not None
    return str(context.task_run.task_inputs["__parents__"][0].id), threading.current_thread().name


@both
@pytest.mark.parametrize("child", [add, add_async], ids=["blocking child", "coroutine child"])
@pytest.mark.parametrize("limit", [1, None])
def test_submit_and_map_work_in_a_deferred_task(colour: Colour, child, limit):
    @colour.task
    def work(number):
        first = child.submit(number)
        rest = child.map([1, 2, 3], first)
        return [future.result() for future in [first, *rest]], child.submit(1, return_state=True).name

    with TaskWorker(work, limit=limit):
        future = work.delay(1)
        assert future.result(PATIENCE) == ([2, 3, 4, 5], "Completed")


@both
def test_what_it_submits_has_it_as_parent_and_is_known_in_the_worker(colour: Colour):
    @colour.task
    def work():
        future = parent_ids.submit()
        return (*future.result(), str(future.task_run_id))

    with TaskWorker(work):
        future = work.delay()
        parent, thread, child = future.result(PATIENCE)
    assert parent == str(future.task_run_id)
    assert thread.startswith("microflow-nested")
    assert [state.name for state in current_client().read_task_run_states(child)] == ["Pending", "Running", "Completed"]


@both
def test_what_it_does_not_wait_for_ends_before_the_worker_lets_it_go(colour: Colour):
    go, ended = threading.Event(), threading.Event()

    @task
    def late():
        assert go.wait(PATIENCE)
        ended.set()

    @colour.task
    def work():
        late.submit()

    with TaskWorker(work) as worker:
        work.delay().wait(PATIENCE)
        assert worker.status()["finished"] == {work.task_key: 0}
        go.set()
        assert ended.wait(PATIENCE)
    assert worker.status()["finished"] == {work.task_key: 1}


@both
def test_an_error_of_what_it_submits_is_raised_where_it_waits(colour: Colour):
    @task
    def fail():
        raise ValueError("the child's")

    @colour.task
    def work():
        fail.submit().result()

    with TaskWorker(work):
        with pytest.raises(ValueError, match="the child's"):
            work.delay().result(PATIENCE)


@both
def test_a_flow_in_it_has_its_own_runner_and_children_submit_too(colour: Colour):
    @flow
    def inner():
        return add.submit(1).result()

    @task
    def child():
        return [future.result() for future in as_completed(add.map([1]))]

    @colour.task
    def work():
        return inner(), child.submit().result()

    with TaskWorker(work):
        assert work.delay().result(PATIENCE) == (2, [2])


def test_after_it_nothing_can_be_submitted_outside_of_flows():
    @task
    def work():
        return add.submit(1).result()

    with TaskWorker(work):
        assert work.delay().result(PATIENCE) == 2
    with pytest.raises(RuntimeError, match="while a flow or a deferred task runs"):
        add.submit(1)
