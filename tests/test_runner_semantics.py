# SPDX-License-Identifier: Apache-2.0
"""What submitting and mapping mean, the same on threads, in processes and with workers: one body for all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from microflow import flow
from microflow._arguments import allow_failure, opaque, unmapped
from microflow.client.objects import TaskRunResult
from microflow.client.orchestration import current_client
from microflow.exceptions import MappingLengthMismatch, MappingMissingIterable
from microflow.futures import RunFuture, resolve_futures_to_results, wait
from microflow.states import State
from microflow.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner, WorkerTaskRunner
from microflow.worker import TaskWorker
from tests import served_tasks as served
from tests.behaviour_support import pins
from tests.support import PATIENCE, run, task_ids

RUNNERS = {
    "threads": lambda: ThreadPoolTaskRunner(max_workers=3),
    "processes": lambda: ProcessPoolTaskRunner(max_workers=2),
    "workers": WorkerTaskRunner,
}


@pytest.fixture(params=RUNNERS)
def runner(request):
    """A runner, and a worker where it needs one."""
    made: TaskRunner[Any] = RUNNERS[request.param]()
    if request.param != "workers":
        yield made
        return
    with TaskWorker(*served.TASKS, limit=3):
        yield made


def result(runner: TaskRunner[Any], body: Any) -> Any:
    """What a body comes to as a flow on the runner."""
    return run(flow(task_runner=runner, name="body")(body)())


def inputs_of(future: Any) -> dict[str, set[Any]]:
    """The upstream runs of each parameter, as they are recorded."""
    task_run = current_client().read_task_run(future.task_run_id)
    return {
        name: {each.id for each in each_inputs if isinstance(each, TaskRunResult)}
        for name, each_inputs in task_run.task_inputs.items()
        if name != "__parents__"
    }


class TestFailures:
    @pins("futures_runners", 49, 53)
    def test_what_depends_on_a_failure_does_not_run(self, runner):
        def body():
            failed = served.fail.submit()
            dependents = [served.identity.submit(failed), served.identity.submit(1, wait_for=[failed])]
            wait(dependents)
            assert [each.state.name for each in dependents] == ["NotReady", "NotReady"]
            assert [each.state.is_pending() for each in dependents] == [True, True]
            return [dependents[0], served.identity.submit(1)]

        state = flow(task_runner=runner, name="body")(body)(return_state=True)
        assert state.is_failed()
        kept = state.result(raise_on_failure=False)
        assert [each.name for each in kept] == ["NotReady", "Completed"]

    @pins("futures_runners", 50)
    def test_a_failure_that_is_allowed_is_given_as_the_exception(self, runner):
        def body():
            failed = served.fail.submit("one")
            return [
                served.identity.submit(allow_failure(failed)).result(),
                served.identity.submit(allow_failure([failed, 1, 2])).result(),
            ]

        alone, (inside, *rest) = result(runner, body)
        assert (str(alone), str(inside), rest) == ("one", "one", [1, 2])
        assert isinstance(alone, ValueError)

    @pins("futures_runners", 51, 52)
    def test_failures_that_are_allowed_are_mapped(self, runner):
        def body():
            good, bad = served.identity.submit(1), served.fail.submit("bad")
            children = served.identity.map(allow_failure([good, bad]))
            pairs = served.pair.map([1, 2, 3], allow_failure(bad))
            return [children.result(), pairs.result(), [child.state.name for child in children]]

        (one, error), pairs, names = result(runner, body)
        assert (one, str(error), names) == (1, "bad", ["Completed", "Completed"])
        assert [(number, str(each)) for number, each in pairs] == [(1, "bad"), (2, "bad"), (3, "bad")]

    @pins("futures_runners", 53, 54)
    def test_wait_for_takes_failures_that_are_allowed_plain_values_and_a_future_alone(self, runner):
        def body():
            failed = served.fail.submit()
            not_ready = served.identity.map([failed, 1])
            return [
                served.identity.submit(1, wait_for=[allow_failure(failed)]).result(),
                served.identity.submit(2, wait_for=[allow_failure(not_ready)]).result(),
                served.identity.submit(3, wait_for=[1, "plain", None]).result(),
                served.identity.submit(4, wait_for=served.identity.submit(0)).result(),
            ]

        assert result(runner, body) == [1, 2, 3, 4]

    @pins("futures_runners", 53)
    def test_wait_for_is_whatever_can_be_iterated_and_once_is_enough(self, runner):
        """Generators and the views of a dict are read when the call is made; an annotation stays what it is."""

        def body():
            failed = served.fail.submit()
            own = {"key": failed}
            waiting = [
                served.identity.submit(1, wait_for=(each for each in [failed])),
                served.identity.submit(1, wait_for=own.values()),
                *served.identity.map([1, 2], wait_for=iter([failed])),
                served.identity.submit(1, wait_for=own),
            ]
            wait(waiting)
            allowed = served.identity.submit(2, wait_for=allow_failure([failed]))
            called = served.identity(3, wait_for=(each for each in [failed]), return_state=True)
            return [future.state.name for future in waiting], allowed.result(), called.name

        assert result(runner, body) == (["NotReady"] * 5, 2, "NotReady")

    @pins("futures_runners", 60)
    def test_a_failure_that_nobody_asks_for_does_not_concern_the_flow(self, runner):
        def body():
            served.fail.submit().wait()
            return "fine"

        assert result(runner, body) == "fine"

    @pins("futures_runners", 31)
    def test_the_failure_of_a_child_that_a_task_awaits_is_the_flows(self, runner):
        with pytest.raises(ValueError, match="of the child"):
            result(runner, lambda: served.parent_of_a_failure.submit().result())


class TestInputs:
    @pins("futures_runners", 56)
    def test_each_parameter_has_its_upstreams(self, runner):
        def body():
            one, two = served.identity.submit(1), served.identity.submit(2)
            plain = served.add.submit(1)
            nested = served.total.submit(one, [two][0], more=one, wait_for=[two])
            deep = served.pair.submit([{"a": one}, two], y=3)
            wait([nested, deep, plain])
            return [inputs_of(each) for each in (plain, nested, deep)] + [one.task_run_id, two.task_run_id]

        plain, nested, deep, one, two = result(runner, body)
        assert plain == {"x": set(), "y": set()}
        assert nested == {"values": {one, two}, "named": {one}, "wait_for": {two}}
        assert deep == {"x": {one, two}, "y": set()}

    @pins("futures_runners", 57)
    def test_a_mapped_child_has_those_of_its_element(self, runner):
        def body():
            listed = served.identity.submit([1, 2])
            one, two = served.identity.submit(1), served.identity.submit(2)
            of_future = served.identity.map(listed)
            of_list = served.identity.map([one, two])
            static = served.pair.map([1, 2], unmapped(one))
            nested = served.identity.map([[one, two], [3]])
            for mapped in (of_future, of_list, static, nested):
                mapped.wait()
            return (
                [[inputs_of(child) for child in mapped] for mapped in (of_future, of_list, static, nested)],
                [each.task_run_id for each in (listed, one, two)],
            )

        (of_future, of_list, static, nested), (listed, one, two) = result(runner, body)
        assert of_future == [{"x": {listed}}] * 2
        assert of_list == [{"x": {one}}, {"x": {two}}]
        assert static == [{"x": set(), "y": {one}}] * 2
        assert nested == [{"x": {one, two}}, {"x": set()}]

    @pins("futures_runners", 48)
    def test_an_opaque_future_is_resolved_and_its_result_not_looked_into(self, runner):
        def body():
            future = served.returned_state.submit()
            return [served.identity.submit(opaque(future)).result(), served.identity.submit(future).result()]

        (kept,), resolved = result(runner, body)
        assert isinstance(kept, State)
        assert resolved == [5]


class TestMap:
    @pins("futures_runners", 67, 68)
    def test_over_whatever_can_be_iterated(self, runner):
        @flow
        def inner():
            return [5, 6]

        def body():
            listed = served.identity.submit([1, 2, 3])
            return [
                served.pair.map(listed, listed).result(),
                served.identity.map((1, 2)).result(),
                served.identity.map(number for number in (3, 4)).result(),
                served.identity.map(listed.state if not listed.wait() else None).result(),
                served.identity.map(inner(return_state=True)).result(),
            ]

        assert result(runner, body) == [[(1, 1), (2, 2), (3, 3)], [1, 2], [3, 4], [1, 2, 3], [5, 6]]

    @pins("futures_runners", 69)
    def test_without_an_iterable_or_with_different_lengths_it_is_refused_before_any_run(self, runner):
        def body():
            with pytest.raises(MappingMissingIterable):
                served.pair.map(5, 6)
            with pytest.raises(MappingLengthMismatch):
                served.pair.map([1, 2, 3], [1, 2, 3, 4])

        result(runner, body)
        assert task_ids("pair") == []

    @pins("futures_runners", 70, 71)
    def test_what_is_static_and_what_is_mapped(self, runner):
        def body():
            return [
                served.pair.map([1, 2], "text").result(),
                served.pair.map([1, 2], unmapped([4, 5, 6, 7])).result(),
                served.pair.map([1, 2], unmapped(5)).result(),
                served.pair.map([1, 2], 5).result(),
                served.pair.map([1, 2]).result(),
                served.keywords.map([1, 2], a=[3, 4], b=5).result(),
            ]

        assert result(runner, body) == [
            [(1, "text"), (2, "text")],
            [(1, [4, 5, 6, 7]), (2, [4, 5, 6, 7])],
            [(1, 5), (2, 5)],
            [(1, 5), (2, 5)],
            [(1, (1, 4)), (2, (1, 4))],
            [(1, {"a": 3, "b": 5}), (2, {"a": 4, "b": 5})],
        ]

    @pins("futures_runners", 72)
    def test_states_when_they_are_asked_for(self, runner):
        states = result(runner, lambda: served.identity.map([1, 2], return_state=True))
        assert [state.is_completed() for state in states] == [True, True]


class TestColours:
    @pins("futures_runners", 25, 85)
    def test_any_task_in_any_flow(self, runner):
        def blocking():
            futures = [served.add.submit(1), served.add_async.submit(1)]
            assert all(isinstance(future, RunFuture) for future in futures)
            mapped = [served.add.map([1, 2]), served.add_async.map([1, 2])]
            return [future.result() for future in futures] + [each.result() for each in mapped]

        async def coroutine():
            futures = [served.add.submit(1), served.add_async.submit(1)]
            assert all(isinstance(future, RunFuture) for future in futures)
            mapped = [served.add.map([1, 2]), served.add_async.map([1, 2])]
            return [await future for future in futures] + [await asyncio.gather(*each) for each in mapped]

        assert result(runner, blocking) == [2, 2, [2, 3], [2, 3]]
        assert result(runner, coroutine) == [2, 2, [2, 3], [2, 3]]

    @pins("futures_runners", 26)
    def test_waiting_for_a_time(self, runner, tmp_path):
        def body():
            slow = served.when_told.submit(str(tmp_path), "a")
            slow.wait(0.01)
            assert not slow.state.is_completed()
            (tmp_path / "a.go").touch()
            quick = served.identity.submit(1)
            quick.wait(PATIENCE)
            slow.wait(PATIENCE)
            return [slow.state.is_completed(), quick.state.is_completed()]

        assert result(runner, body) == [True, True]

    @pins("futures_runners", 34)
    def test_a_returned_map_is_a_list_of_results(self, runner):
        state = flow(task_runner=runner, name="body")(lambda: served.identity.map([1, 2]))(return_state=True)
        given = state.result()
        assert type(given) is list
        assert [each.result() for each in given] == [1, 2]
        assert resolve_futures_to_results(given) == given
