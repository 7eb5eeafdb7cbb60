# SPDX-License-Identifier: Apache-2.0
"""What ``@task`` makes of a function: binding, calling, methods, run names and ``submit``."""

from __future__ import annotations

import functools
import threading
from collections import defaultdict
from typing import Any

import pytest

from microflow import Task, allow_failure, flow, tags, task, unmapped
from microflow._arguments import freeze, opaque, quote
from microflow.cache_policies import INPUTS
from microflow.context import FlowRunContext, TaskRunContext
from microflow.exceptions import MicroflowException, ParameterBindError
from microflow.futures import ConcurrentFuture
from microflow.tasks import task_input_hash
from tests.behaviour_support import pins
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
    @pins("task_engine", 29)
    def test_the_function_gets_the_very_objects(self):
        identity = Task(lambda value: value)
        box: list[int] = []
        assert identity(box) is box
        Task(lambda value: value.append(1))(box)
        assert box == [1]

    @pins("task_engine", 31)
    def test_all_kinds_of_parameters_round_trip(self):
        @task
        def f(a, /, b, *args, c, d=4, **kwargs):
            return a, b, args, c, d, kwargs

        assert f(1, 2, 3, c=5, e=6) == (1, 2, (3,), 5, 4, {"e": 6})

    @pins("task_engine", 32)
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

    @pins("task_engine", 33)
    def test_binding_comes_before_the_complaint_about_the_missing_flow(self):
        with pytest.raises(ParameterBindError):
            add.submit(1, 2, 3)

    @pytest.mark.parametrize("method", ["submit", "map"])
    @pins("futures_runners", 59)
    def test_submit_and_map_need_a_running_flow(self, method):
        with pytest.raises(RuntimeError, match="only while a flow or a deferred task runs"):
            getattr(add, method)([1])

    @pins("task_engine", 39)
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
        for annotation in (unmapped, allow_failure, opaque, quote, freeze):
            assert colour.run(identity, annotation([1])) == [1]

    def test_only_plain_json_can_be_frozen(self):
        assert freeze({"a": [1, None]}).unfreeze() == {"a": [1, None]}
        for value in (object(), float("nan"), {1, 2}):
            with pytest.raises(TypeError, match=f"not this {type(value).__name__}"):
                freeze(value)

    @pins("task_engine", 34)
    def test_a_blocking_task_can_be_called_from_a_coroutine_flow(self):
        @flow
        async def body():
            return add(1), await add_async(2)

        assert run(body()) == (2, 3)

    @pins("task_engine", 34)
    def test_a_blocking_task_can_be_called_from_a_coroutine_task(self):
        @task
        async def outer(x):
            return add(x) + await add_async(x)

        @flow
        async def body():
            return await outer(1), outer.submit(2).result(), await outer.submit(3)

        assert run(body()) == (4, 6, 8)

    @pins("task_engine", 34)
    def test_a_coroutine_task_can_be_submitted_by_a_blocking_task_which_waits_for_it(self):
        @task
        def outer():
            return add_async.submit(1).result()

        @flow
        def body():
            return outer(), outer.submit().result(), add_async.submit(3).result()

        assert body() == (2, 2, 4)

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

    @pins("task_engine", 30)
    @both
    def test_a_falsy_instance_is_bound_too(self, colour: Colour):
        class Empty:
            def __len__(self):
                return 0

            me = colour.task(lambda self: self, name="me")

        empty = Empty()
        assert colour.run(empty.me) is empty

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
    @pins("task_engine", 3)
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

    @pins("task_engine", 2)
    @both
    def test_a_template_may_ask_the_instance(self, colour: Colour):
        class Box:
            label = "blue"
            put = colour.task(lambda self, x: x, name="put", task_run_name="{self.label}|{x}")

        @colour.flow
        def body():
            yield Box().put(7)

        colour.run(body)
        assert [fold().task_run(each).name for each in fold().tasks] == ["blue|7"]

    @pins("task_engine", 7, 8)
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

    @pins("task_engine", 5, 6)
    @both
    @pytest.mark.parametrize(
        ("template", "error", "text"),
        [(lambda: None, TypeError, "NoneType"), ("{nope}", KeyError, "nope")],
        ids=["callable", "template"],
    )
    def test_a_bad_name_reaches_the_caller_and_leaves_the_run_pending(
        self, colour: Colour, template, error, text, caplog
    ):
        named = colour.task(lambda: 1, name="named", task_run_name=template)

        @colour.flow
        def body():
            with pytest.raises(error, match=text):
                yield named()
            with pytest.raises(error, match=text):
                yield named.submit()

        with caplog.at_level("ERROR"):
            colour.run(body)
        assert task_states("<lambda>") == [["Pending"], ["Pending"]]
        assert "Please wait for all submitted tasks" in caplog.text

    @pins("task_engine", 9)
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

    @pins("task_engine", 35, 36)
    @both
    def test_a_future_can_be_waited_for_with_a_limit_and_gives_the_exception_when_asked_to(self, colour: Colour):
        release = threading.Event()
        slow = task(release.wait)
        broken = colour.task(lambda: 1 / 0)

        @flow
        def body():
            future = slow.submit()
            try:
                with pytest.raises(TimeoutError):
                    future.result(timeout=0.01)
                assert future.wait(0.01) is None
                assert not future.state.is_completed()
            finally:
                release.set()
            assert future.result() is True
            error = broken.submit().result(raise_on_failure=False)
            assert isinstance(error, ZeroDivisionError)
            return 1

        assert body() == 1

    @pins("task_engine", 37, 38)
    @both
    def test_a_failed_task_fails_its_flow_only_if_the_flow_lets_it(self, colour: Colour):
        broken = colour.task(lambda: 1 / 0, name="broken")

        @colour.flow
        def body():
            broken.submit()
            state = yield broken(return_state=True)
            assert state.is_failed()
            return "fine"

        assert colour.run(body) == "fine"


class TestArguments:
    @pins("task_engine", 54)
    @both
    def test_a_quoted_future_arrives_as_a_future_also_where_inputs_make_the_key(self, colour: Colour):
        look = colour.task(lambda x: isinstance(x, ConcurrentFuture), name="look", cache_policy=INPUTS)

        @colour.flow
        def body():
            future = add.submit(1)
            state = yield look(quote(future), return_state=True)
            return (state.name, state.result(_sync=True))

        assert tuple(colour.run(body)) == ("Completed", True)

    @pins("task_engine", 55)
    @both
    def test_run_objects_are_refused_by_name_unless_they_are_opaque_or_quoted(self, colour: Colour):
        identity = colour.task(lambda x: x, name="identity")

        @colour.flow
        def body():
            context = FlowRunContext.get()
            assert context is not None
            for call in (identity, identity.submit):
                with pytest.raises(MicroflowException, match="parameter 'x' of task 'identity': a FlowRun object"):
                    yield call(context.flow_run)
            hands_over = Task(lambda: context.flow_run)
            with pytest.raises(MicroflowException, match="a FlowRun object cannot be an argument"):
                yield identity(hands_over.submit())
            with pytest.raises(MicroflowException, match="a FlowRun object cannot be an argument"):
                yield identity.map([context.flow_run])[0]
            for annotation in (opaque, quote):
                assert (yield identity(annotation(context.flow_run))) is context.flow_run
            return 1

        assert colour.run(body) == 1

    @both
    def test_a_container_of_an_unusual_class_is_made_again_where_that_is_possible(self, colour: Colour):
        identity = colour.task(lambda x: x, name="identity")

        @colour.flow
        def body():
            future = add.submit(1)
            found = yield identity(defaultdict(list, {"a": future}))
            assert (type(found), found.default_factory, found) == (defaultdict, list, {"a": 2})
            plain = Pair(1, 2)
            assert (yield identity(plain)) is plain
            with pytest.raises(MicroflowException, match=r"parameter 'x' of task 'identity'.*Pair.*quote\(\)"):
                yield identity(Pair(1, future))
            return 1

        assert colour.run(body) == 1


class Pair(frozenset):
    """A container whose constructor takes something else than its members."""

    def __new__(cls, first, second):
        return super().__new__(cls, [first, second])


class TestSource:
    def test_the_source_of_a_function_can_be_read_and_that_of_an_object_cannot(self):
        assert add.source_code is not None
        assert add.source_code.startswith("@task\ndef add(x, y=1):")
        assert Task(functools.partial(add.fn, 1), name="one").source_code is None
        assert Task(eval("lambda: 1")).source_code is None

    def test_a_hash_of_task_code_and_inputs_is_a_cache_key_unless_an_input_shows_nothing(self):
        context: Any = TaskRunContext(add, None, {}, None)  # type: ignore[arg-type]  # only the task is looked at
        key = task_input_hash(context, {"x": [1]})
        assert key is not None
        assert key == task_input_hash(context, {"x": [1]})
        assert key != task_input_hash(context, {"x": [2]})
        assert key != task_input_hash(TaskRunContext(fail, None, {}, None), {"x": [1]})  # type: ignore[arg-type]
        assert task_input_hash(context, {"x": threading.Lock()}) is None
