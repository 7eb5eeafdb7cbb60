# SPDX-License-Identifier: Apache-2.0
"""``map``: what is mapped over, what every child gets whole, and what it depends on."""

from __future__ import annotations

from typing import Any

import pytest

from microflow import Task, allow_failure, flow, task, unmapped
from microflow._arguments import opaque, quote
from microflow.exceptions import MappingLengthMismatch, MappingMissingIterable, UpstreamTaskError
from microflow.futures import FutureList
from microflow.states import Completed
from tests.behaviour_support import pins
from tests.support import Colour, both, fold, memory_home


@pytest.fixture(autouse=True)
def _memory(monkeypatch):
    memory_home(monkeypatch)


@task
def add(x, y=1):
    return x + y


@task
def fail(message="no"):
    raise ValueError(message)


def mapped(*args: Any, function: Any = None, **kwargs: Any) -> Any:
    """What a map over the tuple of the arguments comes to, inside of a flow."""
    made = Task(function or (lambda x, y=None: (x, y)))
    return flow(lambda: quote(made.map(*args, **kwargs).result()))().unwrap()


class TestMap:
    @pins("task_engine", 63)
    @pytest.mark.parametrize(
        "over", [[1, 2], (1, 2), range(1, 3), {1: "a", 2: "b"}, {1, 2}, (n for n in (1, 2)), Completed(data=[1, 2])]
    )
    def test_maps_over_all_kinds_of_iterables(self, over):
        assert mapped(over) == [(1, None), (2, None)]

    def test_pairs_iterables_of_one_length(self):
        assert mapped([1, 2, 3], [4, 5, 6]) == [(1, 4), (2, 5), (3, 6)]

    @pins("task_engine", 64, 67)
    @pytest.mark.parametrize("static", ["text", b"bytes", 5, None, unmapped([1, 2, 3])])
    def test_gives_what_is_not_mapped_to_each(self, static):
        value = static.unwrap() if isinstance(static, unmapped) else static
        assert mapped([1, 2], static) == [(1, value), (2, value)]

    @pins("task_engine", 65)
    def test_a_default_is_never_mapped(self):
        assert mapped([1, 2], function=lambda x, y=(1, 4): (x, y)) == [(1, (1, 4)), (2, (1, 4))]

    @pins("task_engine", 66)
    def test_extra_keywords_are_mapped_or_static_like_others(self):
        assert mapped([1, 2], z=[3, 4], w=5, function=lambda x, **more: (x, more)) == [
            (1, {"z": 3, "w": 5}),
            (2, {"z": 4, "w": 5}),
        ]

    def test_each_of_the_extra_positionals_is_mapped_by_itself(self):
        assert mapped([1, 2], [3, 4], function=lambda *numbers: sum(numbers)) == [4, 6]

    @pins("task_engine", 68)
    def test_nothing_to_map_over_makes_no_run(self):
        assert mapped([]) == []
        assert fold().tasks == {}

    @pins("task_engine", 64)
    @pytest.mark.parametrize("args", [(5, 6), ("ab", "cd"), (unmapped([1]),)])
    def test_no_iterable_is_an_error_before_any_run(self, args):
        with pytest.raises(MappingMissingIterable):
            mapped(*args)
        assert fold().tasks == {}

    def test_lengths_that_differ_are_an_error_before_any_run(self):
        with pytest.raises(MappingLengthMismatch, match=r"3.*4"):
            mapped([1, 2, 3], [1, 2, 3, 4])
        assert fold().tasks == {}

    @both
    def test_over_the_result_of_a_future_and_over_futures(self, colour: Colour):
        numbers = colour.task(lambda: [1, 2, 3])
        plus = colour.task(lambda x, y: x + y)

        @colour.flow
        def body():
            future = numbers.submit()
            doubled = plus.map(future, future)
            again = plus.map(doubled, unmapped(doubled[0]))
            results = []
            for each in again:
                results.append((yield each))
            return results

        assert colour.run(body) == [4, 6, 8]

    def test_the_inputs_record_what_each_child_depends_on(self):
        @flow
        def body():
            one, two = add.submit(1), add.submit(2)
            both_of_them = add.map([one, two])
            whole = Task(lambda: [1, 2]).submit()
            children = add.map(whole)
            return [
                (child.task_run_id, future.task_run_id)
                for child, future in [*zip(both_of_them, (one, two), strict=True), *((c, whole) for c in children)]
            ]

        expected = body()
        for child, upstream in expected:
            assert fold().tasks[str(child)].created["inputs"]["x"] == [["task_run", str(upstream)]]

    @pins("task_engine", 71)
    def test_a_failed_future_as_the_iterable_raises_in_the_caller(self):
        with pytest.raises(UpstreamTaskError):
            flow(lambda: add.map(fail.submit()))()

    @pins("task_engine", 70)
    def test_a_failed_member_fails_its_own_child_only(self):
        states = flow(lambda: quote(add.map([fail.submit(), 2], return_state=True)))().unwrap()
        assert [state.name for state in states] == ["NotReady", "Completed"]

    @pins("task_engine", 71)
    def test_allow_failure_hands_the_exception_to_the_children(self):
        @flow
        def body():
            future = fail.submit("bad")
            each = Task(lambda x: repr(x)).map(allow_failure([future, 1])).result()
            same = Task(lambda x, y: (x, repr(y))).map([1, 2], allow_failure(future)).result()
            with pytest.raises(MappingMissingIterable):
                add.map(allow_failure(future))
            return quote((each, same))

        bad = "ValueError('bad')"
        assert body().unwrap() == ([bad, "1"], [(1, bad), (2, bad)])

    def test_quote_is_mapped_over_and_kept(self):
        @flow
        def body():
            future = add.submit(1)
            (kept,) = Task(lambda x: x is future).map(quote([future])).result()
            return kept

        assert body() is True

    def test_wait_for_may_be_a_one_shot_iterator(self):
        @flow
        def body():
            futures = add.map([1, 2], wait_for=iter([fail.submit()]))
            futures.wait()
            return quote([future.state.name for future in futures])

        assert body().unwrap() == ["NotReady", "NotReady"]

    @pins("task_engine", 73)
    def test_keeps_the_order_of_its_input(self):
        @flow
        def body():
            futures = add.map(range(50))
            assert isinstance(futures, FutureList)
            return quote(futures.result())

        assert body().unwrap() == list(range(1, 51))

    @pins("task_engine", 63)
    @both
    def test_maps_over_the_state_of_a_flow_run(self, colour: Colour):
        subflow = colour.flow(lambda: [1, 2], name="subflow")

        @colour.flow
        def body():
            state = yield subflow(return_state=True)
            return quote(add.map(state).result())

        assert colour.run(body).unwrap() == [2, 3]

    @pins("task_engine", 69)
    def test_futures_inside_of_what_is_mapped_over_are_those_of_their_child_alone(self):
        @task
        def total(numbers):
            return sum(numbers)

        @flow
        def body():
            first, second = add.submit(1), add.submit(2)
            children = total.map([[first, 1], [second], [5]])
            return quote((children.result(), [each.task_run_id for each in (first, second, *children)]))

        results, (first, second, *children) = body().unwrap()
        assert results == [3, 3, 5]
        recorded = [fold().tasks[str(child)].created["inputs"]["numbers"] for child in children]
        assert recorded == [[["task_run", str(first)]], [["task_run", str(second)]], []]

    @pins("task_engine", 70)
    def test_a_child_of_a_failed_upstream_is_not_ready_and_its_siblings_run(self):
        @flow
        def body():
            children = add.map([fail.submit(), 2])
            children.wait()
            return quote([child.state.name for child in children])

        assert body().unwrap() == ["NotReady", "Completed"]

    @pins("task_engine", 72)
    def test_a_task_can_map_and_outside_of_flows_nobody_can(self):
        @task
        def outer():
            return add.map([1, 2]).result()

        assert flow(lambda: quote(outer()))().unwrap() == [2, 3]
        with pytest.raises(RuntimeError, match="while a flow or a deferred task runs"):
            add.map([1, 2])

    def test_a_single_future_in_an_annotation_goes_whole_to_every_child(self):
        both_of_them = Task(lambda x, y: (x, y))
        whole = Task(lambda: [1, 2])

        @flow
        def body():
            future = whole.submit()
            return quote([both_of_them.map([0], kind(future)).result() for kind in (unmapped, allow_failure, opaque)])

        assert body().unwrap() == [[(0, [1, 2])]] * 3
