# SPDX-License-Identifier: Apache-2.0
"""The life of a flow run: what its body returns or raises decides its final state; retries, hooks, interrupts."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest

from microflow import flow, task
from microflow.client.orchestration import current_client
from microflow.context import get_run_context
from microflow.exceptions import (
    Abort,
    CancelledRun,
    CrashedRun,
    FailedRun,
    NoSpace,
    PausedRun,
    SignatureMismatchError,
    UnfinishedRun,
)
from microflow.flow_engine import FlowRunEngine, run_flow
from microflow.flow_runs import cancel_flow_run
from microflow.flows import Flow
from microflow.futures import FutureList, RunFuture
from microflow.states import (
    Cancelled,
    Cancelling,
    Completed,
    Crashed,
    Failed,
    Paused,
    Pending,
    Running,
    Scheduled,
    State,
    StateType,
)
from tests.behaviour_support import pins
from tests.support import (
    PATIENCE,
    Colour,
    Witness,
    both,
    fake_waits,
    flow_run_ids,
    flow_states,
    fold,
    memory_home,
    run,
    task_states,
)

ERROR = ValueError("no")


@pytest.fixture(autouse=True)
def _memory(monkeypatch):
    memory_home(monkeypatch)


@task
def good(value=1):
    return value


@task
def bad():
    raise ERROR


@task
def cancelled():
    return Cancelled()


def outcome(colour: Colour, body: Any, **options: Any) -> tuple[State[Any], Any]:
    """The final state of a flow with that body, and what another call of it raises or gives."""
    made = colour.flow(body, name="the-flow", **options)
    state = colour.run(made, return_state=True)
    try:
        value = colour.run(made)
    except Exception as error:  # whatever it is, the test wants to look at it
        value = error
    return state, value


class TestFinalStates:
    """What the body came to, what is recorded, and what the caller gets."""

    @pins("flows", 37)
    @both
    @pytest.mark.parametrize("value", [None, 5, "text", [], {"a": 1}, ValueError("returned"), [Failed(), 1]])
    def test_a_value_completes_the_run(self, colour: Colour, value):
        state, given = outcome(colour, lambda: value)
        assert state.name == "Completed"
        assert given is value

    @both
    def test_an_exception_fails_it_and_is_raised_itself(self, colour: Colour):
        def body():
            raise ERROR

        state, raised = outcome(colour, body)
        assert (state.name, state.message) == ("Failed", "Flow run encountered an exception: ValueError: no")
        assert raised is ERROR
        assert flow_states(flow_run_ids()[0]) == ["Pending", "Running", "Failed"]

    @both
    @pytest.mark.parametrize(
        ("make", "name", "error"),
        [
            (lambda: Completed(data="v"), "Completed", "v"),
            (lambda: Completed(message="m", name="Mine", data=1), "Mine", 1),
            (lambda: State("FAILED", message="m", data="hello!"), "Failed", FailedRun),
            (lambda: Failed(message="m"), "Failed", FailedRun),
            (lambda: Failed(data=ERROR), "Failed", ValueError),
            (lambda: Cancelled(), "Cancelled", CancelledRun),
            (lambda: Crashed(message="m"), "Crashed", CrashedRun),
            (lambda: Paused(), "Paused", PausedRun),
            (lambda: Cancelling(), "Cancelling", UnfinishedRun),
        ],
        ids=lambda value: value if isinstance(value, str) else None,
    )
    def test_a_state_made_by_hand_is_the_final_state(self, colour: Colour, make, name, error):
        state, given = outcome(colour, make)
        assert state.name == name
        assert isinstance(given, error) if isinstance(error, type) else given == error

    @both
    @pytest.mark.parametrize("make", [Pending, Running, Scheduled])
    def test_a_state_that_no_run_can_end_in_is_a_failure(self, colour: Colour, make):
        state, raised = outcome(colour, lambda: make())
        assert state.is_failed()
        assert isinstance(raised, ValueError)
        assert "no state that a run can end in" in str(raised)

    @pins("flows", 40)
    @both
    def test_one_failed_state_or_future_raises_its_error(self, colour: Colour):
        for make in (lambda: bad(return_state=True), lambda: bad.submit()):
            state, raised = outcome(colour, make)
            assert (state.name, state.message) == ("Failed", "1/1 states failed.")
            assert raised is ERROR

    @both
    def test_one_completed_state_or_future_is_given_as_a_state(self, colour: Colour):
        for make in (lambda: good(return_state=True), lambda: good.submit()):
            state, given = outcome(colour, make)
            assert (state.name, state.message) == ("Completed", "All states completed.")
            assert isinstance(given, State)
            assert given.result(_sync=True) == 1

    @pins("flows", 41, 42)
    @both
    @pytest.mark.parametrize("kind", [list, tuple])
    @pytest.mark.parametrize(
        ("tasks", "name", "message"),
        [
            ([bad, bad, good], "Failed", "2/3 states failed."),
            ([cancelled, good, bad], "Cancelled", "1/3 states cancelled."),
            ([good, good], "Completed", "All states completed."),
        ],
    )
    def test_a_collection_of_states_is_aggregated_and_given_without_raising(
        self, colour: Colour, kind, tasks, name, message
    ):
        names = [{bad: "Failed", good: "Completed", cancelled: "Cancelled"}[each] for each in tasks]
        for method in ("__call__", "submit"):
            state, given = outcome(
                colour,
                lambda method=method: kind(
                    getattr(each, method)(**({"return_state": True} if method == "__call__" else {})) for each in tasks
                ),
            )
            assert (state.name, state.message) == (name, message)
            assert type(given) is kind
            assert [each.name for each in given] == names

    @pins("flows", 44, 45)
    @both
    @pytest.mark.parametrize("wrap", [lambda f: {"a": f}, lambda f: (None, f), lambda f: [[f]], lambda f: [f, 1]])
    def test_states_among_other_things_do_not_matter(self, colour: Colour, wrap):
        state, given = outcome(colour, lambda: wrap(bad.submit()))
        assert state.is_completed()
        while not isinstance(given, State):
            given = given["a"] if isinstance(given, dict) else given[-1] if given[0] is None else given[0]
        assert given.is_failed()

    @pins("flows", 46)
    @both
    def test_a_map_comes_back_as_a_plain_list_of_states(self, colour: Colour):
        state, given = outcome(colour, lambda: good.map([1, 2]))
        assert state.is_completed()
        assert type(given) is list
        assert [each.result(_sync=True) for each in given] == [1, 2]
        assert not isinstance(given, FutureList)

    @pins("flows", 38)
    @both
    def test_a_failed_task_that_nobody_asked_for_does_not_matter(self, colour: Colour):
        def body():
            bad.submit().wait()
            bad(return_state=True)

        assert outcome(colour, body)[0].is_completed()

    @pins("flows", 52)
    @both
    def test_a_generator_is_given_as_a_list(self, colour: Colour):
        state, given = outcome(colour, lambda: (n for n in (1, 2)))
        assert state.result(_sync=True) == [1, 2]
        assert given == [1, 2]

    def test_a_coroutine_that_a_blocking_flow_returns_is_awaited(self):
        async def later():
            await asyncio.sleep(0)
            return 5

        assert flow(lambda: later())() == 5

        @flow
        async def outer():
            return flow(lambda: later())()  # on a loop that runs already

        assert run(outer()) == 5

    @both
    def test_an_interrupted_task_does_not_interrupt_the_caller_of_its_flow(self, colour: Colour):
        @task
        def leave():
            raise SystemExit(3)

        state, raised = outcome(colour, lambda: leave.submit())
        assert state.is_failed()
        assert isinstance(raised, CrashedRun)

    @both
    def test_returned_futures_are_waited_for(self, colour: Colour):
        release = threading.Event()

        @task
        def slow(x):
            release.wait(PATIENCE)
            return x

        @colour.flow
        def body():
            futures = slow.map([1, 2])
            threading.Timer(0.01, release.set).start()
            return [futures, {"a": futures[0]}]

        (listed, by_key) = colour.run(body)
        assert [state.result(_sync=True) for state in listed] == [1, 2]
        assert by_key["a"] is listed[0]

    @both
    def test_another_partys_word_on_the_run_wins_over_the_value(self, colour: Colour):
        @colour.flow
        def body():
            current_client().set_flow_run_state(flow_run_ids()[-1], Cancelled(message="stopped"), force=True)
            return 5

        state = colour.run(body, return_state=True)
        assert (state.type, state.message) == (StateType.CANCELLED, "stopped")
        with pytest.raises(CancelledRun):
            colour.run(body)


class TestRetries:
    @pins("flows", 54)
    @both
    def test_a_failed_attempt_is_followed_by_another(self, colour: Colour):
        attempts = Witness()

        @colour.flow(retries=1)
        def body():
            attempts.saw("body")
            if attempts["body"] == 1:
                raise ERROR
            return "second"

        assert colour.run(body) == "second"
        assert flow_states() == ["Pending", "Running", "AwaitingRetry", "Running", "Completed"]
        assert fold().flow_run.run_count == 2
        assert "ValueError: no" in (fold().states[2].message or "")

    @both
    def test_delays_are_slept_with_fractions(self, colour: Colour, monkeypatch):
        slept = fake_waits(monkeypatch)

        @colour.flow(retries=2, retry_delay_seconds=1.5)
        def body():
            raise ERROR

        state = colour.run(body, return_state=True)
        assert state.is_failed()
        assert sum(slept) == pytest.approx(3, abs=0.3)

    @pins("flows", 64)
    @both
    @pytest.mark.parametrize("make", [lambda: Failed(message="by hand"), lambda: bad.submit()])
    def test_a_returned_failure_is_retried_like_a_raised_one(self, colour: Colour, make):
        attempts = Witness()

        @colour.flow(retries=2)
        def body():
            attempts.saw("body")
            return make() if attempts["body"] < 3 else "third"

        assert colour.run(body) == "third"
        assert attempts["body"] == 3

    @pins("flows", 51)
    @both
    @pytest.mark.parametrize("make", [lambda: Completed(data=1), lambda: good.submit()])
    def test_the_error_of_an_earlier_attempt_is_forgotten(self, colour: Colour, make):
        attempts = Witness()

        @colour.flow(retries=1)
        def body():
            attempts.saw("body")
            if attempts["body"] == 1:
                raise ERROR
            return make()

        value = colour.run(body)
        assert (value.result(_sync=True) if isinstance(value, State) else value) == 1

    @both
    def test_the_error_of_an_earlier_attempt_does_not_hide_the_states_of_the_last(self, colour: Colour):
        attempts = Witness()

        @colour.flow(retries=1)
        def body():
            attempts.saw("body")
            if attempts["body"] == 1:
                raise ERROR
            return [bad.submit(), good.submit()]

        assert [state.name for state in colour.run(body)] == ["Failed", "Completed"]

    @pins("flows", 57)
    @both
    def test_each_attempt_makes_new_task_runs_with_their_full_retries(self, colour: Colour):
        calls = Witness()

        @colour.task(retries=1)
        def inner():
            calls.saw("inner")
            raise ERROR

        @colour.flow(retries=1)
        def body():
            yield inner()

        with pytest.raises(ValueError):
            colour.run(body)
        assert calls["inner"] == 4
        assert task_states("inner") == [["Pending", "Running", "Retrying", "Failed"]] * 2

    @pins("flows", 55, 82)
    @both
    def test_hooks_on_failure_run_once_and_on_running_for_each_attempt(self, colour: Colour):
        seen: list[str] = []

        def hook(label):
            return lambda flow, flow_run, state: seen.append(f"{label} {state.name}")

        @colour.flow(retries=2, on_failure=[hook("f1"), hook("f2")], on_running=[hook("r")])
        def body():
            raise ERROR

        colour.run(body, return_state=True)
        assert seen == ["r Running"] * 3 + ["f1 Failed", "f2 Failed"]

    @both
    def test_interrupts_and_cancellations_are_not_retried(self, colour: Colour):
        attempts = Witness()

        @colour.flow(retries=3)
        def interrupted():
            attempts.saw("interrupted")
            raise KeyboardInterrupt

        @colour.flow(retries=3)
        def stopped():
            attempts.saw("stopped")
            return Cancelled()

        with pytest.raises(KeyboardInterrupt):
            colour.run(interrupted)
        colour.run(stopped, return_state=True)
        assert attempts == {"interrupted": 1, "stopped": 1}


class TestHooks:
    @pins("flows", 81)
    @both
    @pytest.mark.parametrize(
        ("option", "make"),
        [
            ("on_completion", lambda: 1),
            ("on_failure", lambda: Failed()),
            ("on_crashed", lambda: Crashed()),
            ("on_cancellation", lambda: Cancelling()),
        ],
    )
    def test_each_kind_fires_for_its_state_only_and_inside_of_the_run(self, colour: Colour, option, make):
        seen: list[tuple[str, str]] = []

        def hook(kind):
            def called(flow, flow_run, state):
                assert flow_run.state == state
                context = get_run_context()
                assert context.flow_run is flow_run  # type: ignore[union-attr]
                seen.append((kind, state.name))

            return called

        options = ("on_completion", "on_failure", "on_crashed", "on_cancellation")
        state = colour.run(colour.flow(make, **{each: [hook(each)] for each in options}), return_state=True)
        assert seen == [(option, state.name)]

    @pins("flows", 48)
    @both
    def test_there_is_none_for_cancelled_and_paused(self, colour: Colour):
        seen: list[str] = []
        hooks = {f"on_{kind}": [lambda *_: seen.append("hook")] for kind in ("cancellation", "failure", "completion")}
        for make in (Cancelled, Paused):
            colour.run(colour.flow(lambda make=make: make(), **hooks), return_state=True)
        assert seen == []

    @pins("flows", 78, 79)
    @both
    def test_one_that_raises_hurts_nobody_and_coroutines_are_awaited(self, colour: Colour, caplog):
        seen: list[str] = []

        async def later(flow, flow_run, state):
            await asyncio.sleep(0)
            seen.append("later")

        hooks = [lambda *_: 1 / 0, later, lambda *_: seen.append("last")]
        assert colour.run(colour.flow(lambda: 5, on_completion=hooks)) == 5
        assert seen == ["later", "last"]
        assert "An error was encountered while running hook '<lambda>'" in caplog.text

    @pins("flows", 73)
    @both
    def test_an_interrupt_in_a_hook_goes_on_and_the_final_state_stays(self, colour: Colour):
        def hook(flow, flow_run, state):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            colour.run(colour.flow(lambda: 5, on_completion=[hook]))
        assert flow_states() == ["Pending", "Running", "Completed"]
        assert fold().owner is None

    @both
    def test_on_failure_runs_when_the_flow_could_not_start(self, colour: Colour):
        seen: list[str] = []
        made = colour.flow(lambda: 1, flow_run_name="{nope}", on_failure=[lambda f, r, state: seen.append(state.name)])
        with pytest.raises(KeyError):
            colour.run(made)
        assert seen == ["Failed"]


class TestInterrupts:
    @pins("flows", 71)
    @both
    @pytest.mark.parametrize(
        ("interrupt", "text"),
        [
            (KeyboardInterrupt, "Execution was aborted by an interrupt signal"),
            (SystemExit, "Execution was aborted by a system exit"),
            (asyncio.CancelledError, "cancelled by the runtime environment"),
        ],
    )
    def test_are_recorded_run_hooks_and_go_on(self, colour: Colour, interrupt, text):
        seen: list[str] = []

        @colour.flow(on_crashed=[lambda flow, flow_run, state: seen.append(state.name)])
        def body():
            raise interrupt

        with pytest.raises(interrupt):
            colour.run(body, return_state=True)
        assert flow_states() == ["Pending", "Running", "Crashed"]
        assert text in (fold().states[-1].message or "")
        assert seen == ["Crashed"]
        assert fold().owner is None
        with pytest.raises(CrashedRun, match=text):
            fold().states[-1].result(_sync=True)

    @pins("flows", 72)
    @both
    def test_before_the_body_they_are_recorded_too(self, colour: Colour):
        def name():
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            colour.run(colour.flow(lambda: 1, flow_run_name=name))
        assert flow_states() == ["Pending", "Crashed"]

    @both
    def test_abort_is_logged_and_records_nothing(self, colour: Colour, caplog):
        def body():
            raise Abort("enough")

        with pytest.raises(Abort):
            colour.run(colour.flow(body))
        assert "aborted: enough" in caplog.text
        assert fold().owner is None

    @pins("flows", 75)
    def test_a_cancelled_coroutine_flow_is_recorded(self):
        @flow
        async def forever():
            await asyncio.Event().wait()

        async def body():
            running = asyncio.ensure_future(forever())
            while not flow_run_ids() or flow_states()[-1] != "Running":  # noqa: ASYNC110 - the log has no event
                await asyncio.sleep(0)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

        run(body())
        assert flow_states() == ["Pending", "Running", "Crashed"]

    @pins("flows", 75)
    def test_a_cancelled_coroutine_flow_that_was_asked_to_stop_is_cancelled(self):
        seen: list[str] = []
        hooks = {f"on_{kind}": [lambda *_, kind=kind: seen.append(kind)] for kind in ("cancellation", "crashed")}

        @flow(**hooks)
        async def forever():
            await asyncio.Event().wait()

        async def body():
            running = asyncio.ensure_future(forever())
            while not flow_run_ids() or flow_states()[-1] != "Running":  # noqa: ASYNC110 - the log has no event
                await asyncio.sleep(0)
            cancel_flow_run(flow_run_ids()[0])
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

        run(body())
        assert flow_states() == ["Pending", "Running", "Cancelling", "Cancelled"]
        assert seen == ["cancellation"]

    @both
    def test_an_interrupted_task_crashes_its_flow(self, colour: Colour):
        @colour.task
        def leave():
            raise SystemExit(3)

        @colour.flow
        def body():
            yield leave()

        with pytest.raises(SystemExit):
            colour.run(body)
        assert flow_states()[-1] == "Crashed"


class TestLog:
    @both
    def test_the_first_line_creates_and_claims_and_the_last_ends_and_releases(self, colour: Colour):
        colour.run(colour.flow(lambda: 1))
        records = current_client().store.read(fold().run_id).records
        by_line: dict[int, list[str]] = {}
        for record in records:
            by_line.setdefault(record.position, []).append(record.kind)
        assert list(by_line.values()) == [["run", "claim", "state"], ["state"], ["state", "release"]]

    @both
    def test_the_lines_of_a_run_say_where_it_stands(self, colour: Colour, caplog):
        caplog.set_level(logging.INFO)
        colour.run(colour.flow(lambda: 1, name="mine", flow_run_name="my-run"))
        lines = [record.getMessage() for record in caplog.records if record.name == "microflow.flow_runs"]
        assert lines == ["Beginning flow run 'my-run' for flow 'mine'", "Finished in state Completed()"]
        caplog.clear()
        colour.run(colour.flow(lambda: Failed()), return_state=True)
        assert [record.levelname for record in caplog.records][-1] == "ERROR"


class TestRunFlow:
    @both
    def test_runs_a_created_run_with_its_recorded_parameters(self, colour: Colour):
        made = colour.flow(lambda a, *more, b=2, **named: [a, more, b, named], name="made")
        client = current_client()
        parameters = {"a": 1, "more": (5, 6), "b": 3, "named": {"c": 7}}
        created = client.create_flow_run(made, parameters=parameters, state=Pending())
        state = run(run_flow(made, created, return_type="state"))
        assert state.result(_sync=True) == [1, (5, 6), 3, {"c": 7}]
        assert flow_states(created.id) == ["Pending", "Running", "Completed"]

    @pins("flows", 140)
    @both
    def test_given_parameters_replace_the_recorded_ones(self, colour: Colour):
        made = colour.flow(lambda a, b=2: [a, b])
        created = current_client().create_flow_run(made, parameters={"a": 1, "b": 5})
        assert run(run_flow(made, created, {"a": 9, "b": 2})) == [9, 2]

    @both
    def test_recorded_parameters_that_do_not_fit_leave_the_run_unclaimed(self, colour: Colour):
        created = current_client().create_flow_run(Flow(lambda a: a, name="f"), parameters={"a": 1})
        with pytest.raises(SignatureMismatchError):
            run(run_flow(colour.flow(lambda b: b, name="f"), created))
        assert (fold().owner, fold().epoch, flow_states()) == (None, 0, ["Scheduled"])

    @both
    def test_a_scheduled_run_waits_for_its_time(self, colour: Colour, monkeypatch):
        from datetime import datetime, timedelta, timezone

        slept = fake_waits(monkeypatch)
        made = colour.flow(lambda: 1)
        due = Scheduled(scheduled_time=datetime.now(timezone.utc) + timedelta(seconds=30))
        created = current_client().create_flow_run(made, state=due)
        assert run(run_flow(made, created)) == 1
        assert sum(slept) == pytest.approx(30, abs=1)
        assert flow_states() == ["Scheduled", "Running", "Completed"]

    def test_an_engine_has_no_state_before_it_has_a_run(self):
        engine: FlowRunEngine[Any] = FlowRunEngine(flow(lambda: 1))
        assert not engine.is_running()
        with pytest.raises(ValueError, match="no flow run yet"):
            engine.state

    def test_a_future_of_a_third_party_may_be_returned(self):
        class Done(RunFuture[int]):
            def wait(self, timeout=None):
                self._final_state = Completed(data=4)

            def result(self, timeout=None, raise_on_failure=True):
                return 4

            def add_done_callback(self, fn):
                fn(self)

        from uuid import uuid4

        state: Any = flow(lambda: {"future": Done(uuid4())})()
        assert state["future"].result(_sync=True) == 4

    def test_an_interrupt_whose_crash_cannot_be_recorded_leaves_no_thread_of_the_runner(self, monkeypatch):
        store = current_client().store
        append = store.append

        def refuse(run_id, bodies, **options):
            if any(body.get("type") == "CRASHED" for body in bodies):
                raise NoSpace("no space is left")
            return append(run_id, bodies, **options)

        monkeypatch.setattr(store, "append", refuse)

        @flow
        def interrupted():
            task(lambda: 1).submit().result()
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):  # what the user meant wins over what the store said
            interrupted()
        assert not [each for each in threading.enumerate() if each.name.startswith("microflow")]
