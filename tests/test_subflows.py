# SPDX-License-Identifier: Apache-2.0
"""Flows that flows call: a log of their own, a tracking run in the parent's log, failures that travel."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from microflow import flow, tags, task
from microflow._arguments import quote
from microflow.client.orchestration import current_client
from microflow.exceptions import CrashedRun
from microflow.futures import FutureList
from microflow.states import Cancelled, Crashed, State
from microflow.task_runners import ThreadPoolTaskRunner
from tests.behaviour_support import pins
from tests.support import (
    Colour,
    Witness,
    both,
    flow_run_ids,
    flow_states,
    fold,
    memory_home,
    run,
    task_ids,
    task_states,
)

ERROR = ValueError("child")


@pytest.fixture(autouse=True)
def _memory(monkeypatch):
    memory_home(monkeypatch)


def parent_id() -> str:
    return flow_run_ids("parent")[0]


def tracking(child_name: str = "child") -> list[str]:
    """The tracking runs of a subflow in the parent's log."""
    run = fold(parent_id())
    return [key for key, history in run.tasks.items() if history.created["task"] == child_name]


def tracking_states(child_name: str = "child") -> list[list[str]]:
    run = fold(parent_id())
    return [[state.name for state in run.task_states(key)] for key in tracking(child_name)]


class TestTracking:
    @both
    def test_a_subflow_has_a_log_of_its_own_and_a_tracking_run_in_its_parents(self, colour: Colour):
        child = colour.flow(lambda x: x + 1, name="child", version="7")

        @colour.flow
        def parent():
            first = yield child(1)
            return (yield child(first))

        assert colour.run(parent) == 3
        children = flow_run_ids("child")
        assert len(children) == 2
        assert tracking_states() == [["Pending", "Completed"]] * 2
        for key, child_id in zip(tracking(), children, strict=True):
            recorded, child_run = fold(parent_id()).task_run(key), fold(child_id).flow_run
            assert (str(recorded.child_flow_run_id), recorded.task_version) == (child_id, "7")
            assert (str(child_run.parent_task_run_id), str(child_run.parent_flow_run_id)) == (key, parent_id())
            assert str(child_run.root_flow_run_id) == parent_id()
            assert recorded.name.startswith("child-")
            assert recorded.state is not None
            assert str(recorded.state.state_details.child_flow_run_id) == child_id

    @both
    def test_the_root_is_that_of_the_whole_family(self, colour: Colour):
        leaf = colour.flow(lambda: 1, name="leaf")

        @colour.flow
        def child():
            return (yield leaf())

        @colour.flow
        def parent():
            return (yield child())

        colour.run(parent)
        (leaf_id,), (child_id,) = flow_run_ids("leaf"), flow_run_ids("child")
        leaf_run = fold(leaf_id).flow_run
        assert (str(leaf_run.root_flow_run_id), str(leaf_run.parent_flow_run_id)) == (parent_id(), child_id)

    @both
    def test_inputs_and_tags_are_recorded(self, colour: Colour):
        child = colour.flow(lambda x: x, name="child")

        @colour.flow
        def parent():
            with tags("inner"):
                future = task(lambda: 5).submit()
                return [str(future.task_run_id), (yield child(future))]

        with tags("outer"):
            upstream, value = colour.run(parent)
        assert value == 5
        created = fold(parent_id()).tasks[tracking()[0]].created
        assert created["inputs"] == {"x": [["task_run", upstream]]}
        assert fold(flow_run_ids("child")[0]).flow_run.tags == {"inner", "outer"}

    @both
    def test_a_subflow_called_by_a_task_names_the_task_as_parent(self, colour: Colour):
        child = colour.flow(lambda: 1, name="child")

        @colour.task
        def caller():
            return (yield child())

        @colour.flow
        def parent():
            yield caller()
            yield caller.submit()

        colour.run(parent)
        assert len(flow_run_ids("child")) == 2
        assert len(tracking()) == 2

    @both
    def test_tasks_of_a_subflow_stand_in_its_log(self, colour: Colour):
        made = colour.task(lambda: 1, name="made")

        @colour.flow
        def child():
            yield made()
            yield made.submit()

        @colour.flow
        def parent():
            yield child()

        colour.run(parent)
        assert len(task_ids("<lambda>", flow_run_ids("child")[0])) == 2
        assert task_ids("<lambda>", parent_id()) == []

    @both
    def test_a_subflow_uses_its_own_runner(self, colour: Colour):
        names: list[str] = []

        class Named(ThreadPoolTaskRunner):
            pass

        @task
        def where():
            import threading

            names.append(threading.current_thread().name)

        child = colour.flow(lambda: where.submit().wait(), name="child", task_runner=Named(1))

        @colour.flow(task_runner=ThreadPoolTaskRunner(1))
        def parent():
            where.submit().wait()
            yield child()

        colour.run(parent)
        assert [name.split("-")[1] for name in names] == ["threadpool", "named"]

    @both
    def test_its_beginning_is_told_as_that_of_a_subflow(self, colour: Colour, caplog):
        caplog.set_level(logging.INFO)
        child = colour.flow(lambda: 1, name="child")

        @colour.flow
        def parent():
            yield child()

        colour.run(parent)
        assert "Beginning subflow run" in caplog.text


class TestOutcomes:
    @both
    def test_a_failure_travels_to_the_parent(self, colour: Colour):
        def body():
            raise ERROR

        child = colour.flow(body, name="child")

        @colour.flow
        def parent():
            yield child()

        with pytest.raises(ValueError) as caught:
            colour.run(parent)
        assert caught.value is ERROR
        assert tracking_states() == [["Pending", "Failed"]]
        assert flow_states(parent_id())[-1] == "Failed"

    @both
    def test_with_return_state_it_is_just_a_state(self, colour: Colour):
        def body():
            raise ERROR

        child = colour.flow(body, name="child")

        @colour.flow
        def parent():
            state = yield child(return_state=True)
            assert (state.name, state.data) == ("Failed", ERROR)
            return "fine"

        assert colour.run(parent) == "fine"

    @both
    def test_a_returned_state_of_a_subflow_decides_for_the_parent(self, colour: Colour):
        child = colour.flow(lambda: Cancelled(), name="child")

        @colour.flow
        def parent():
            return (yield child(return_state=True))

        state = colour.run(parent, return_state=True)
        assert (state.name, state.message) == ("Cancelled", "1/1 states cancelled.")

    @pins("flows", 49)
    @both
    def test_a_crashed_child_fails_its_parent_and_runs_the_hooks_of_both(self, colour: Colour):
        seen: list[str] = []
        child = colour.flow(
            lambda: Crashed(message="m"), name="child", on_crashed=[lambda *_: seen.append("child crashed")]
        )

        @colour.flow(on_failure=[lambda *_: seen.append("parent failed")])
        def parent():
            yield child()

        with pytest.raises(CrashedRun):
            colour.run(parent)
        assert seen == ["child crashed", "parent failed"]
        assert tracking_states() == [["Pending", "Crashed"]]

    @both
    def test_an_interrupt_in_a_child_crashes_both(self, colour: Colour):
        def body():
            raise KeyboardInterrupt

        child = colour.flow(body, name="child")

        @colour.flow
        def parent():
            yield child()

        with pytest.raises(KeyboardInterrupt):
            colour.run(parent)
        assert tracking_states() == [["Pending", "Crashed"]]
        assert [flow_states(each)[-1] for each in flow_run_ids()] == ["Crashed", "Crashed"]
        assert all(fold(each).owner is None for each in flow_run_ids())

    @pins("flows", 60)
    @both
    def test_retries_of_child_and_parent_multiply(self, colour: Colour):
        calls = Witness()

        def body():
            calls.saw("child")
            if calls["child"] < 4:
                raise ERROR
            return "done"

        child = colour.flow(body, name="child", retries=1)

        @colour.flow(retries=1)
        def parent():
            return (yield child())

        assert colour.run(parent) == "done"
        assert calls["child"] == 4
        assert len(flow_run_ids("child")) == 2
        assert tracking_states() == [["Pending", "Failed"], ["Pending", "Completed"]]

    @both
    def test_a_failed_upstream_leaves_a_subflow_not_ready(self, colour: Colour):
        called = Witness()
        child = colour.flow(lambda x: called.saw("child"), name="child")

        @task
        def fail():
            raise ERROR

        @colour.flow
        def parent():
            state = yield child(fail.submit(), return_state=True)
            return state.name

        assert colour.run(parent) == "NotReady"
        assert not called


class TestTogether:
    def test_coroutine_subflows_can_be_gathered(self):
        @flow
        async def child(x):
            await asyncio.sleep(0)
            return await task(lambda: x).submit()

        @flow
        async def parent():
            return await asyncio.gather(*[child(x) for x in range(5)])

        assert run(parent()) == list(range(5))
        assert len(set(tracking())) == 5

    def test_a_blocking_subflow_can_be_called_from_a_coroutine_flow(self):
        @flow
        def child(x):
            return task(lambda: x).submit().result()

        @flow
        async def parent():
            return child(1) + child(2)

        assert run(parent()) == 3

    def test_a_coroutine_subflow_that_a_blocking_flow_returns_is_awaited(self):
        @flow
        async def child():
            return 5

        @flow
        def parent():
            return child()

        assert parent() == 5

    def test_recursion(self):
        @flow
        def down(n):
            return 0 if n == 0 else 1 + down(n - 1)

        assert down(8) == 8
        assert len(flow_run_ids()) == 9

    @pytest.mark.parametrize("workers", [1, 3])
    def test_subflows_in_submitted_tasks_give_their_slot_back_while_they_wait(self, workers):
        leaf = task(lambda x: x)

        @flow(task_runner=ThreadPoolTaskRunner(1))
        def child(x):
            return sum(leaf.map([x, x]).result())

        @task
        def caller(x):
            return child(x)

        @flow(task_runner=ThreadPoolTaskRunner(workers))
        def parent():
            return sum(caller.map(range(6)).result())

        assert parent() == 30

    def test_a_coroutine_task_can_run_subflows_of_both_colours(self):
        @flow
        def blocking(x):
            return task(lambda: x).submit().result()

        @flow
        async def coroutine(x):
            return await task(lambda: x).submit()

        @task
        async def caller(x):
            return blocking(x) + await coroutine(x)

        @flow(task_runner=ThreadPoolTaskRunner(1))
        def parent():
            return sum(caller.map([1, 2, 3]).result())

        assert parent() == 12


def test_a_subflow_that_is_left_cancels_what_it_did_not_start():
    import threading

    begun, release, futures = threading.Event(), threading.Event(), list[Any]()

    @task
    def held():
        begun.set()
        release.wait(5)

    @flow(task_runner=ThreadPoolTaskRunner(1))
    def child():
        futures.extend([held.submit(), held.submit()])
        begun.wait(5)
        futures[1].add_done_callback(lambda _: release.set())

    @flow
    def parent():
        child()
        FutureList(futures).wait()
        return quote([future.state.name for future in futures])

    assert parent().unwrap() == ["Completed", "Cancelled"]
    states = task_states("held", flow_run_ids("child")[0])
    assert states == [["Pending", "Running", "Completed"], ["Pending", "Cancelled"]]


def test_the_client_sees_parent_and_child():
    @flow
    def child():
        return 1

    @flow
    def parent():
        return child(return_state=True)

    state: State[Any] = parent(return_state=True)
    client = current_client()
    runs = {each.flow_name: each for each in client.read_flow_runs()}
    assert runs["parent"].state_name == state.name == "Completed"
    assert runs["child"].parent_flow_run_id == runs["parent"].id
