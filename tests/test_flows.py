# SPDX-License-Identifier: Apache-2.0
"""What ``@flow`` makes of a function: options, names, binding, ``with_options``, calling, loading."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from typing import Any

import pytest

from microflow import Flow, flow, tags, task
from microflow.context import FlowRunContext, TaskRunContext, get_run_context
from microflow.exceptions import InvalidNameError, MissingContextError, MissingFlowError, ParameterBindError
from microflow.exceptions import ReservedArgumentError as Reserved
from microflow.flows import load_flow_from_entrypoint, load_function_and_convert_to_flow
from microflow.settings import temporary_settings
from microflow.task_runners import ThreadPoolTaskRunner
from tests.behaviour_support import pins
from tests.support import Colour, both, flow_run_ids, fold, memory_home, run, task_ids

make: Any = Flow  # for calls that a type checker would refuse, as users make them


@pytest.fixture(autouse=True)
def _memory(monkeypatch):
    memory_home(monkeypatch)


@flow
def my_flow(x, y=2):
    """Do

    it.
    """
    return x + y


class TestOptions:
    def test_all_forms_decorate(self):
        assert isinstance(my_flow, Flow)
        assert isinstance(flow()(lambda: 1), Flow)
        assert flow(name="n")(lambda: 1).name == "n"
    @pins("flows", 2, 9)
    def test_names(self):
        assert (my_flow.name, my_flow.__name__, my_flow.description) == ("my-flow", "my_flow", "Do\n\nit.")
        assert make(lambda: 1).name == "unknown-lambda"
        assert make(lambda: 1, name="a_b").name == "a_b"

    def test_the_raw_function_makes_no_run(self):
        assert my_flow.fn(1) == 3
        assert flow_run_ids() == []

    @pins("flows", 4)
    @pytest.mark.parametrize(("name", "hint"), [(1, "int"), (len, "meant to call it")])
    def test_a_name_must_be_text(self, name, hint):
        with pytest.raises(TypeError, match=hint):
            make(lambda: 1, name=name)

    @pins("flows", 3)
    @pytest.mark.parametrize("character", "/%&<>")
    def test_some_characters_are_not_for_names(self, character):
        with pytest.raises(InvalidNameError, match="contains an invalid character"):
            make(lambda: 1, name=f"my{character}flow")

    @pins("flows", 6)
    @pytest.mark.parametrize("name", ["wait_for", "return_state"])
    def test_parameters_that_calls_need_are_reserved(self, name):
        with pytest.raises(Reserved, match="is a reserved argument name"):
            make(eval(f"lambda {name}: 1"))

    @pins("flows", 7)
    @pytest.mark.parametrize("option", ["on_completion", "on_failure", "on_cancellation", "on_crashed", "on_running"])
    def test_hooks_must_be_an_iterable_of_callables(self, option):
        with pytest.raises(TypeError, match=f"Expected iterable for '{option}'"):
            make(lambda: 1, **{option: print})
        with pytest.raises(TypeError, match="Expected callables"):
            make(lambda: 1, **{option: ["x"]})
    @pins("flows", 1, 5)
    def test_other_mistakes_are_named(self):
        with pytest.raises(TypeError, match="callable"):
            make({})
        with pytest.raises(TypeError, match="'timeout'"):
            make(lambda: 1, timeout=3)
        with pytest.raises(TypeError, match="flow_run_name"):
            make(lambda: 1, flow_run_name=4)

    @pins("flows", 5)
    def test_a_run_name_that_is_no_text_is_named_at_the_call_too(self):
        made = make(lambda: 1)
        made.flow_run_name = object()
        with pytest.raises(TypeError, match="flow_run_name"):
            made()

    @pins("flows", 8)
    def test_the_version_is_what_is_given_or_follows_from_the_source_file(self):
        assert make(lambda: 1, version="7").version == "7"
        own = my_flow.version
        assert isinstance(own, str)
        assert own == make(test_a_coroutine_flow_that_is_not_awaited_makes_no_run).version
        typed = {"flow": flow}
        exec("@flow\ndef typed(): pass", typed)
        nowhere: Any = typed["typed"]
        assert nowhere.version is None
        exec(compile("@flow\ndef typed(): pass", "/absent/file.py", "exec"), typed)
        lost: Any = typed["typed"]
        assert lost.version is None

    @pins("flows", 10)
    def test_a_storage_or_a_serializer_asks_for_persistence_unless_that_is_given(self):
        made = [make(lambda: 1, **{option: "x"}) for option in ("result_storage", "result_serializer")]
        assert [each.persist_result for each in made] == [True, True]
        assert make(lambda: 1, result_storage="x", persist_result=False).persist_result is False
        assert make(lambda: 1).persist_result is None

    def test_the_rest_of_the_options_have_their_defaults(self):
        made = make(lambda: 1)
        assert (made.timeout_seconds, made.log_prints, made.should_validate_parameters) == (None, None, True)
        assert (made.cache_result_in_memory, made.result_storage, made.result_serializer) == (True, None, None)
        assert make(lambda: 1, timeout_seconds=0).timeout_seconds is None
        assert make(lambda: 1, timeout_seconds=2).timeout_seconds == 2.0

    def test_hooks_are_in_lists_by_their_names_and_can_be_decorated_on(self):
        made = make(lambda: 1, on_failure=iter([print]))
        assert made.on_failure_hooks == [print]
        for option in ("on_completion", "on_failure", "on_cancellation", "on_crashed", "on_running"):
            assert getattr(made, option)(repr) is repr
            assert getattr(made, f"{option}_hooks")[-1] is repr

    def test_what_kind_of_function_it_is(self):
        class Owner:
            @flow
            def method(self):
                return 1

            @flow  # type: ignore[arg-type]
            @classmethod
            def of_class(cls):
                return 1

        owner: Any = Owner
        assert (owner().method.ismethod, owner.method.ismethod, owner.of_class.ismethod) == (True, False, False)
        assert (owner.of_class.isclassmethod, my_flow.isstaticmethod, my_flow.isasync) == (True, False, False)
        assert my_flow._entrypoint == f"{__name__}:my_flow"
        assert "<locals>" in owner.method._entrypoint

    def test_default_retries_come_from_the_settings(self):
        with temporary_settings(default_flow_retries=1, default_flow_retry_delay_seconds=0.5):
            made = make(lambda: 1)
        assert (made.retries, made.retry_delay_seconds) == (1, 0.5)

    def test_a_runner_may_be_a_class(self):
        assert isinstance(make(lambda: 1, task_runner=ThreadPoolTaskRunner).task_runner, ThreadPoolTaskRunner)


class TestWithOptions:
    def test_gives_a_new_flow_with_some_options_replaced(self):
        copied = my_flow.with_options(name="other", retries=2)
        assert (copied.name, copied.retries, copied.fn) == ("other", 2, my_flow.fn)
        assert (my_flow.name, my_flow.retries) == ("my-flow", 0)

    def test_none_and_empty_keep_and_zero_counts(self):
        original = make(lambda: 1, name="n", retries=3, retry_delay_seconds=2, version="1", on_failure=[print])
        kept = original.with_options(name=None, version="", retries=None, on_failure=[])
        assert (kept.name, kept.version, kept.retries, list(kept.hooks.values())) == ("n", "1", 3, [[print]])
        zero = original.with_options(retries=0, retry_delay_seconds=0)
        assert (zero.retries, zero.retry_delay_seconds) == (0, 0)
    @pins("flows", 11, 12)
    def test_none_is_an_answer_where_a_run_inherits_and_zero_and_false_always(self):
        original = make(
            lambda: 1, timeout_seconds=5, log_prints=True, result_serializer="json", result_storage="there",
            persist_result=True, validate_parameters=False, cache_result_in_memory=False, retries=1,
        )  # fmt: skip
        same = original.with_options()
        assert same is not original
        attributes = ("timeout_seconds", "log_prints", "persist_result", "should_validate_parameters",
                      "cache_result_in_memory", "retries", "result_storage", "_entrypoint")  # fmt: skip
        assert [getattr(same, name) for name in attributes] == [getattr(original, name) for name in attributes]
        kept = original.with_options(name="other", timeout_seconds=None, validate_parameters=None)
        assert [getattr(kept, name) for name in attributes] == [getattr(original, name) for name in attributes]
        inherits = original.with_options(log_prints=None, result_serializer=None, result_storage=None)
        assert (inherits.log_prints, inherits.result_serializer, inherits.result_storage) == (None, None, None)
        zero = original.with_options(timeout_seconds=0, validate_parameters=True, retries=0)
        assert (zero.timeout_seconds, zero.should_validate_parameters, zero.retries) == (None, True, 0)

    @pins("flows", 14)
    def test_a_hook_on_the_copy_is_not_on_the_original(self):
        original = make(lambda: 1, on_completion=[print])
        copied = original.with_options(name="copy")
        copied.on_completion(repr)
        assert list(original.hooks.values()) == [[print]]
    @pins("flows", 13)
    def test_a_class_method_flow_keeps_its_class(self):
        class Base:
            @flow  # type: ignore[arg-type]
            @classmethod
            def who(cls):
                return cls.__name__

        child: Any = type("Child", (Base,), {})
        assert child.who.with_options(name="other")() == "Child"


class TestCalling:
    @both
    def test_gives_the_value_or_the_state(self, colour: Colour):
        made = colour.flow(lambda x, y=3: x + y)
        assert colour.run(made, 1) == 4
        state = colour.run(made, 1, y=4, return_state=True)
        assert (state.name, state.result(_sync=True)) == ("Completed", 5)

    @pins("flows", 19)
    @both
    def test_a_call_that_does_not_fit_raises_at_once_and_makes_no_run(self, colour: Colour):
        made = colour.flow(lambda x: x)
        for options in ({}, {"return_state": True}):
            with pytest.raises(ParameterBindError, match="x"):
                made(**options)  # a coroutine flow does not wait for its await
        assert flow_run_ids() == []

    @pins("flows", 15)
    @both
    def test_defaults_are_part_of_the_recorded_parameters(self, colour: Colour):
        colour.run(colour.flow(lambda x, y=2, *more, z=3, **named: 1), 1, named_one=5)
        assert fold().flow_run.parameters == {"x": 1, "y": 2, "more": [], "z": 3, "named": {"named_one": 5}}

    @both
    def test_the_body_gets_the_very_object_also_when_it_cannot_be_recorded(self, colour: Colour):
        class Thing:
            def __reduce__(self):
                raise TypeError("no")

        thing = Thing()
        made = colour.flow(lambda x: x is thing)
        with pytest.warns(RuntimeWarning, match="cannot be kept"):
            assert colour.run(made, thing)
        assert fold().flow_run.parameters == {"x": "<Thing>"}

    @pins("flows", 26, 27, 28)
    @both
    def test_futures_states_and_annotations_are_resolved_first(self, colour: Colour):
        from microflow import allow_failure
        from microflow._arguments import quote

        error = ValueError("no")

        @task
        def fail():
            raise error

        inner = colour.flow(lambda *values: [repr(value) for value in values], name="inner")

        @colour.flow
        def outer():
            future, broken = task(lambda: 5).submit(), fail.submit()
            quoted = yield colour.flow(lambda value: value is future, name="quoted")(quote(future))
            assert quoted
            return (yield inner(future, [future], allow_failure(broken)))

        assert colour.run(outer) == ["5", "[5]", repr(error)]

    @pins("flows", 27)
    @both
    def test_a_failed_upstream_leaves_the_run_not_ready(self, colour: Colour):
        from microflow.exceptions import UnfinishedRun
        from microflow.states import Failed

        called: list[int] = []
        made = colour.flow(lambda value: called.append(1))
        for options in ({}, {"wait_for": [Failed()]}):
            value = Failed() if not options else 1
            state = colour.run(made, value, return_state=True, **options)
            assert (state.type, state.name) == ("PENDING", "NotReady")
        with pytest.raises(UnfinishedRun):
            colour.run(made, Failed())
        assert called == []

    @both
    def test_an_argument_that_cannot_be_resolved_is_recorded_as_the_failure(self, colour: Colour):
        from microflow.exceptions import MissingResult
        from microflow.states import Completed

        with pytest.raises(MissingResult):
            colour.run(colour.flow(lambda value: value), Completed())
        assert [state.name for state in fold().states] == ["Pending", "Failed"]

    def test_wait_for_is_waited_for(self):
        order: list[str] = []
        release = threading.Event()

        @task
        def first():
            release.wait(5)
            order.append("first")

        @flow
        def outer():
            future = first.submit()
            release.set()
            flow(lambda: order.append("second"))(wait_for=[future])

        outer()
        assert order == ["first", "second"]

    def test_a_bare_thread_starts_a_run_of_its_own(self):
        @flow
        def outer():
            thread = threading.Thread(target=my_flow, args=(1,))
            thread.start()
            thread.join()

        outer()
        runs = [fold(each).flow_run for each in flow_run_ids()]
        assert [each.parent_flow_run_id for each in runs] == [None, None]

    @pins("flows", 83)
    @both
    def test_tags_come_from_around_the_call(self, colour: Colour):
        made = colour.flow(lambda: 1)
        with tags("a"), tags("b") as both_tags:
            colour.run(made)
        assert both_tags == fold().flow_run.tags == {"a", "b"}


@both
@pins("flows", 56)
@pytest.mark.parametrize(("persist", "executions"), [(True, 1), (False, 2)])
def test_a_retry_of_the_flow_executes_a_task_again_unless_its_result_is_persisted(
    colour: Colour, persist, executions, tmp_path, monkeypatch
):
    monkeypatch.setenv("MICROFLOW_HOME", str(tmp_path / "home"))
    executed: list[int] = []
    attempts: list[int] = []

    @colour.task(persist_result=persist)
    def work(x):
        executed.append(x)

    @colour.flow(retries=1)
    def body():
        yield work(1)
        attempts.append(1)
        if len(attempts) == 1:
            raise ValueError

    colour.run(body)
    assert (len(attempts), len(executed)) == (2, executions)


class TestMethods:
    @pins("flows", 29)
    def test_two_bound_instances_do_not_mix_up(self):
        class Named:
            def __init__(self, name):
                self.name = name

            def __len__(self):
                return 0  # falsy

            @flow(flow_run_name="run-of-{self.name}")
            def tell(self, x=1):
                return self.name

        first, second = Named("first"), Named("second")
        tell_first, tell_second = first.tell, second.tell
        assert (tell_second(), tell_first()) == ("second", "first")
        with pytest.warns(RuntimeWarning, match="the parameters of 'tell' cannot be kept"):
            assert Named.tell(Named("third")) == "third"  # here the instance is a parameter like any other
        runs = [fold(each).flow_run for each in flow_run_ids()]
        assert [each.name for each in runs] == ["run-of-second", "run-of-first", "run-of-third"]
        assert runs[0].parameters == {"x": 1}  # bound, the instance is no parameter

    @pins("flows", 30)
    def test_the_class_takes_the_instance_as_an_argument_before_and_after_it_was_bound(self):
        @dataclasses.dataclass
        class Named:
            name: str

            @flow
            def tell(self: Named):
                return self.name

        first = Named("first")
        assert (Named.tell(first), first.tell(), Named.tell(Named("second"))) == ("first", "first", "second")

    @pytest.mark.parametrize("outside", [True, False], ids=["flow-outside", "flow-inside"])
    def test_static_methods(self, outside):
        def plain(x):
            return x

        made: Any = flow
        wrapped = made(staticmethod(plain)) if outside else staticmethod(made(plain))
        owner: Any = type("Owner", (), {"plain": wrapped})
        assert (owner.plain(1), owner().plain(2)) == (1, 2)


class TestRunNames:
    @pins("flows", 31)
    @both
    def test_a_template_uses_parameters_and_defaults(self, colour: Colour):
        colour.run(colour.flow(lambda foo=1, bar=2: foo, flow_run_name="hi-{foo}-{bar}"), bar="x")
        assert fold().flow_run.name == "hi-1-x"

    @pins("flows", 34, 35)
    @both
    def test_is_made_once_per_run_before_it_runs(self, colour: Colour):
        asked: list[int] = []

        def name():
            asked.append(len(asked))
            return f"number-{len(asked)}"

        @colour.flow(flow_run_name=name, retries=3)
        def body():
            raise ValueError

        colour.run(body, return_state=True)
        colour.run(body, return_state=True)
        assert asked == [0, 1]
        records = [body for body in _bodies(flow_run_ids()[0]) if body["k"] in ("rename", "state")]
        assert [record.get("name", record.get("type")) for record in records[:3]] == ["PENDING", "number-1", "RUNNING"]

    @pins("flows", 33)
    @both
    @pytest.mark.parametrize(("template", "error"), [(lambda: None, TypeError), ("{nope}", KeyError)])
    def test_a_bad_one_reaches_the_caller_and_is_recorded_as_the_failure(self, colour: Colour, template, error):
        made = colour.flow(lambda: 1, flow_run_name=template)
        with pytest.raises(error, match="NoneType" if error is TypeError else "nope"):
            colour.run(made, return_state=True)
        assert [state.name for state in fold().states] == ["Pending", "Failed"]
        assert fold().owner is None

    @pins("flows", 36)
    def test_the_own_name_stands_in_the_line_that_says_that_the_run_begins(self, caplog):
        caplog.set_level("INFO", logger="microflow")
        flow(lambda x: x, flow_run_name="number-{x}")(5)
        (said,) = [record.getMessage() for record in caplog.records if "Beginning" in record.getMessage()]
        assert "'number-5'" in said

    def test_without_one_the_run_gets_two_words(self):
        my_flow(1)
        assert len(fold().flow_run.name.split("-")) == 2


def _bodies(run_id: str) -> list[dict[str, Any]]:
    from microflow.client.orchestration import current_client

    return [record.data for record in current_client().store.read(run_id).records]


class TestContexts:
    @pins("flows", 85)
    @both
    def test_the_body_knows_its_run(self, colour: Colour):
        seen: list[Any] = []

        @colour.task
        def inner():
            seen.append(get_run_context())

        @colour.flow
        def body(x):
            context = FlowRunContext.get()
            assert context is not None
            seen.append((get_run_context(), context.parameters, context.start_time is not None))
            yield inner()

        colour.run(body, 5)
        (context, parameters, started), task_context = seen
        assert (str(context.flow_run.id), parameters, started) == (fold().run_id, {"x": 5}, True)
        assert str(task_context.task_run.id) == task_ids("inner")[0]

    def test_outside_of_runs_there_is_none(self):
        assert FlowRunContext.get() is None
        assert TaskRunContext.get() is None
        with pytest.raises(MissingContextError):
            get_run_context()

    @pins("flows", 84)
    def test_in_a_subflow_of_a_task_the_flow_is_current(self):
        seen: list[Any] = []

        @flow
        def child():
            seen.append(get_run_context())

        flow(lambda: task(child.fn and (lambda: child()))())()
        assert isinstance(seen[0], FlowRunContext)
        assert seen[0].flow.name == "child"
    @pins("flows", 86)
    def test_a_context_can_be_entered_once_at_a_time(self):
        @flow
        def body():
            context = FlowRunContext.get()
            assert context is not None
            with pytest.raises(RuntimeError, match="Context already entered"):
                context.__enter__()
            with context.copy() as again:
                assert FlowRunContext.get() is again
            with pytest.raises(RuntimeError, match="Asymmetric use of context"):
                context.copy().__exit__(None, None, None)

        body()

    def test_user_context_variables_follow_into_submitted_tasks_and_do_not_come_back(self):
        from contextvars import ContextVar

        variable: ContextVar[str] = ContextVar("variable", default="unset")

        @task
        def read():
            value = variable.get()
            variable.set("changed")
            return value

        @task
        async def read_async():
            value = variable.get()
            variable.set("changed")
            await asyncio.sleep(0)
            return value

        @flow
        def body():
            variable.set("set")
            return [read.submit().result(), read_async.submit().result(), variable.get()]

        assert body() == ["set", "set", "set"]


class TestLoading:
    def test_a_flow_is_found_by_its_entrypoint(self, tmp_path):
        script = tmp_path / "my_script.py"
        script.write_text("from microflow import flow\n@flow\ndef hello(): return 'hi'\nother = 5\n")
        assert load_flow_from_entrypoint(f"{script}:hello")() == "hi"
        with pytest.raises(MissingFlowError, match="int, not a flow"):
            load_flow_from_entrypoint(f"{script}:other")

    def test_a_plain_function_becomes_a_flow_whose_prints_are_logged(self, tmp_path):
        script = tmp_path / "my_function.py"
        script.write_text("from microflow import flow\ndef hello(): return 'hi'\n@flow\ndef made(): pass\n")
        loaded = load_function_and_convert_to_flow(f"{script}:hello")
        assert (loaded.name, loaded.log_prints, loaded()) == ("hello", True, "hi")
        assert load_function_and_convert_to_flow(f"{script}:made").log_prints is None
        with pytest.raises(RuntimeError, match="absent"):
            load_function_and_convert_to_flow(f"{script}:absent")


def test_a_coroutine_flow_that_is_not_awaited_makes_no_run():
    @flow
    async def body():
        return 1

    body().close()
    assert flow_run_ids() == []
    assert run(body()) == 1


@pins("flows", 76)
def test_a_coroutine_flow_that_is_closed_before_its_end_is_cancelled_and_did_not_crash():
    called: list[str] = []

    @flow(on_crashed=[lambda *_: called.append("crashed")])
    async def body():
        try:
            await asyncio.sleep(60)
        finally:
            called.append("cleaned up")

    async def main():
        running = body()
        task = asyncio.ensure_future(asyncio.sleep(0))
        running.send(None)  # up to the sleep
        running.close()
        await task

    run(main())
    assert called == ["cleaned up"]
    assert [state.name for state in fold().states] == ["Pending", "Running", "Cancelled"]
    assert fold().owner is None
