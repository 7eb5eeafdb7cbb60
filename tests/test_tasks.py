# SPDX-License-Identifier: Apache-2.0
"""What ``@task`` makes of a function: binding, calling, methods, ``submit`` and ``map``."""

from __future__ import annotations

from typing import Any

import pytest

from microflow import Task, allow_failure, flow, tags, task, unmapped
from microflow._arguments import opaque, quote
from microflow.exceptions import (
    MappingLengthMismatch,
    MappingMissingIterable,
    ParameterBindError,
    UpstreamTaskError,
)
from microflow.futures import ConcurrentFuture, FutureList
from microflow.states import Completed
from tests.support import Colour, both, flow_run_ids, fold, memory_home, run, task_ids, task_states


@pytest.fixture(autouse=True)
def _memory(monkeypatch):
    memory_home(monkeypatch)


@task
def add(x, y=1):
    """Add.

    Two numbers.
    """
    return x + y


@task
def fail(message="no"):
    raise ValueError(message)


@task
async def add_async(x, y=1):
    return x + y


class TestCalling:
    def test_the_function_gets_the_very_objects(self):
        identity = Task(lambda value: value)
        box: list[int] = []
        assert identity(box) is box

    def test_all_kinds_of_parameters_round_trip(self):
        @task
        def f(a, /, b, *args, c, d=4, **kwargs):
            return a, b, args, c, d, kwargs

        assert f(1, 2, 3, c=5, e=6) == (1, 2, (3,), 5, 4, {"e": 6})

    @pytest.mark.parametrize("made", [add, add_async], ids=["sync", "async"])
    def test_arguments_that_do_not_fit_raise_before_any_run_exists(self, made):
        @flow
        def body():
            for call in (made, made.submit, made.map):
                with pytest.raises(ParameterBindError, match="add"):
                    call(1, 2, 3)
            with pytest.raises(ParameterBindError, match="x"):
                made()

        body()
        assert fold().tasks == {}

    def test_binding_comes_before_the_complaint_about_the_missing_flow(self):
        with pytest.raises(ParameterBindError):
            add.submit(1, 2, 3)

    @pytest.mark.parametrize("method", ["submit", "map"])
    def test_submit_and_map_need_a_running_flow(self, method):
        with pytest.raises(RuntimeError, match="while a flow runs"):
            getattr(add, method)([1])

    def test_a_generator_task_is_refused_for_now_when_it_is_called(self):
        @task
        def numbers():
            yield 1

        @flow
        def body():
            for call in (numbers, numbers.submit, numbers.map):
                with pytest.raises(TypeError, match="generator tasks are not supported yet"):
                    call()

        body()
        assert fold().tasks == {}

    def test_a_coroutine_task_that_is_not_awaited_makes_no_run(self):
        @flow
        def body():
            add_async(1).close()

        body()
        assert fold().tasks == {}

    @both
    def test_outside_of_flows_a_task_just_runs(self, colour: Colour):
        double = colour.task(lambda x: 2 * x)
        assert colour.run(double, 4) == 8
        assert colour.run(double, 4, return_state=True).is_completed()
        assert flow_run_ids() == []

    @both
    def test_annotations_are_taken_off_before_the_function_sees_the_value(self, colour: Colour):
        identity = colour.task(lambda value: value)
        for annotation in (unmapped, allow_failure, opaque, quote):
            assert colour.run(identity, annotation([1])) == [1]

    def test_a_blocking_task_can_be_called_from_a_coroutine_flow(self):
        @flow
        async def body():
            return add(1), await add_async(2)

        assert run(body()) == (2, 3)

    @both
    def test_a_task_can_call_tasks(self, colour: Colour):
        inner = colour.task(lambda x: x + 1, name="inner")

        @colour.task
        def outer(x):
            return (yield inner(x)) * 10

        @colour.flow
        def body():
            return (yield outer(1))

        assert colour.run(body) == 20
        (inner_id,), (outer_id,) = task_ids("<lambda>"), task_ids("outer")
        assert fold().tasks[inner_id].created["inputs"]["__parents__"] == [["task_run", outer_id]]
        assert "__parents__" not in fold().tasks[outer_id].created["inputs"]


class TestMethods:
    def test_a_method_gets_its_instance(self):
        class Counter:
            def __init__(self, start):
                self.value = start

            @task
            def plus(self, x):
                return self.value + x

        assert Counter(1).plus(2) == 3
        assert Counter.plus(Counter(5), 2) == 7

    def test_two_bound_instances_do_not_mix_up(self):
        class Named:
            def __init__(self, name):
                self.name = name

            @task
            def tell(self):
                return self.name

        first, second = Named("first").tell, Named("second").tell
        assert (first(), second(), first()) == ("first", "second", "first")

    def test_a_falsy_instance_is_bound_too(self):
        class Empty:
            def __len__(self):
                return 0

            @task
            def me(self):
                return self

        empty = Empty()
        assert empty.me() is empty

    @pytest.mark.parametrize("outside", [True, False], ids=["task-outside", "task-inside"])
    def test_static_and_class_methods(self, outside):
        def named(cls, x=0):
            return cls.__name__, x

        def plain(x):
            return x

        made: dict[str, Any] = {
            "named": task(classmethod(named)) if outside else classmethod(task(named)),  # type: ignore[arg-type]
            "plain": task(staticmethod(plain)) if outside else staticmethod(task(plain)),
        }
        base: Any = type("Base", (), made)
        child = type("Child", (base,), {})
        assert (base.named(), child.named(1), child().named(2)) == (("Base", 0), ("Child", 1), ("Child", 2))
        assert (base.plain(3), child().plain(4)) == (3, 4)

    def test_methods_can_be_submitted_and_mapped(self):
        class Scale:
            def __init__(self, by):
                self.by = by

            @task
            def times(self, x):
                return self.by * x

            def __iter__(self):
                raise AssertionError("the instance is no parameter to map over")

        @flow
        def body():
            two, three = Scale(2), Scale(3)
            return two.times.submit(1).result(), three.times.map([1, 2]).result()

        assert body() == (2, [3, 6])


class TestRunNames:
    @both
    def test_a_template_is_filled_from_parameters_and_defaults(self, colour: Colour):
        named = colour.task(lambda x, y=2: x + y, task_run_name="{x}-and-{y}")

        @colour.flow
        def body():
            yield named(1)
            yield named.submit(5)

        colour.run(body)
        assert sorted(run.names[-1] if run.names else run.created["name"] for run in fold().tasks.values()) == [
            "1-and-2",
            "5-and-2",
        ]

    def test_a_template_may_ask_the_instance(self):
        class Box:
            label = "blue"

            @task(task_run_name="{self.label}|{x}")
            def put(self, x):
                return x

        state = flow(lambda: Box().put(7, return_state=True))(return_state=True)
        inner = state.result(_sync=True)
        assert fold().task_run(str(inner.state_details.task_run_id)).name == "blue|7"

    @both
    def test_a_callable_is_asked_once_per_call_and_may_take_the_parameters(self, colour: Colour):
        asked: list[object] = []

        def name(parameters):
            asked.append(parameters)
            return f"n{parameters['x']}"

        @colour.task(task_run_name=name, retries=2)
        def named(x):
            raise ValueError

        for _ in range(2):
            with pytest.raises(ValueError):
                colour.run(named, 1)
        assert asked == [{"x": 1}, {"x": 1}]

    @both
    @pytest.mark.parametrize(
        ("template", "error", "text"),
        [(lambda: None, TypeError, "NoneType"), ("{nope}", KeyError, "nope")],
        ids=["callable", "template"],
    )
    def test_a_bad_name_reaches_the_caller_and_leaves_the_run_pending(self, colour: Colour, template, error, text):
        named = colour.task(lambda: 1, name="named", task_run_name=template)

        @colour.flow
        def body():
            with pytest.raises(error, match=text):
                yield named()
            with pytest.raises(error, match=text):
                yield named.submit()

        colour.run(body)
        assert task_states("<lambda>") == [["Pending"], ["Pending"]]

    def test_another_kind_of_name_is_refused_when_made_and_when_run(self):
        with pytest.raises(TypeError, match="Expected string or callable for 'task_run_name'; got int"):
            Task(lambda: 1, task_run_name=1)
        changed = Task(lambda: 1)
        changed.task_run_name = 5
        with pytest.raises(TypeError, match="Expected string or callable"):
            changed()


class TestSubmit:
    @both
    def test_gives_a_future_at_once(self, colour: Colour):
        made = colour.task(lambda x: x + 1)

        @colour.flow
        def body():
            future = made.submit(1)
            assert isinstance(future, ConcurrentFuture)
            return (yield future)

        assert colour.run(body) == 2

    @both
    def test_return_state_waits_for_the_state(self, colour: Colour):
        made, broken = colour.task(lambda x: x), colour.task(lambda: 1 / 0)

        @flow
        def body():
            good, bad = made.submit(3, return_state=True), broken.submit(return_state=True)
            assert (good.name, good.result(), bad.name) == ("Completed", 3, "Failed")
            return 1

        assert body() == 1

    def test_tags_are_those_at_submission(self):
        tagged = Task(lambda: None, tags=["own"])

        @flow
        def body():
            with tags("a"):
                tagged.submit()
                with tags("b"):
                    tagged()

        with tags("flow"):
            body()
        recorded = [run.created["tags"] for run in fold().tasks.values()]
        assert recorded == [["a", "flow", "own"], ["a", "b", "flow", "own"]]
        assert fold().flow_run.tags == {"flow"}


def mapped(*args: Any, function: Any = None, **kwargs: Any) -> Any:
    """What a map over the tuple of the arguments comes to, inside of a flow."""
    made = Task(function or (lambda x, y=None: (x, y)))
    return flow(lambda: quote(made.map(*args, **kwargs).result()))().unwrap()


class TestMap:
    @pytest.mark.parametrize(
        "over", [[1, 2], (1, 2), range(1, 3), {1: "a", 2: "b"}, (n for n in (1, 2)), Completed(data=[1, 2])]
    )
    def test_maps_over_all_kinds_of_iterables(self, over):
        assert mapped(over) == [(1, None), (2, None)]

    def test_pairs_iterables_of_one_length(self):
        assert mapped([1, 2, 3], [4, 5, 6]) == [(1, 4), (2, 5), (3, 6)]

    @pytest.mark.parametrize("static", ["text", b"bytes", 5, None, unmapped([1, 2, 3])])
    def test_gives_what_is_not_mapped_to_each(self, static):
        value = static.unwrap() if isinstance(static, unmapped) else static
        assert mapped([1, 2], static) == [(1, value), (2, value)]

    def test_a_default_is_never_mapped(self):
        assert mapped([1, 2], function=lambda x, y=(1, 4): (x, y)) == [(1, (1, 4)), (2, (1, 4))]

    def test_extra_keywords_are_mapped_or_static_like_others(self):
        assert mapped([1, 2], z=[3, 4], w=5, function=lambda x, **more: (x, more)) == [
            (1, {"z": 3, "w": 5}),
            (2, {"z": 4, "w": 5}),
        ]

    def test_each_of_the_extra_positionals_is_mapped_by_itself(self):
        assert mapped([1, 2], [3, 4], function=lambda *numbers: sum(numbers)) == [4, 6]

    def test_nothing_to_map_over_makes_no_run(self):
        assert mapped([]) == []
        assert fold().tasks == {}

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

    def test_a_failed_future_as_the_iterable_raises_in_the_caller(self):
        with pytest.raises(UpstreamTaskError):
            flow(lambda: add.map(fail.submit()))()

    def test_a_failed_member_fails_its_own_child_only(self):
        states = flow(lambda: quote(add.map([fail.submit(), 2], return_state=True)))().unwrap()
        assert [state.name for state in states] == ["NotReady", "Completed"]

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

    def test_keeps_the_order_of_its_input(self):
        @flow
        def body():
            futures = add.map(range(50))
            assert isinstance(futures, FutureList)
            return quote(futures.result())

        assert body().unwrap() == list(range(1, 51))
