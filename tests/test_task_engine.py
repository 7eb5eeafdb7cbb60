# SPDX-License-Identifier: Apache-2.0
"""The life of a task run: states in the log, upstreams, crashes. Each test in both colours."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from concurrent.futures import Future
from typing import Any
from uuid import uuid4

import pytest

from microflow import allow_failure, flow, task
from microflow._arguments import opaque, quote
from microflow.client.orchestration import current_client
from microflow.context import FlowRunContext
from microflow.exceptions import Abort, CancelledRun, FailedRun, MicroflowException, MissingResult, UpstreamTaskError
from microflow.futures import ConcurrentFuture
from microflow.states import (
    Cancelled,
    Completed,
    Crashed,
    Failed,
    Paused,
    Pending,
    Running,
    State,
    Value,
)
from microflow.task_engine import AsyncTaskRunEngine, SyncTaskRunEngine, run_task, run_task_sync
from tests.behaviour_support import pins
from tests.support import (
    Colour,
    Witness,
    both,
    fold,
    memory_home,
    run,
    task_ids,
    task_states,
)
from tests.task_support import FAILURE, failing, in_flow


@pytest.fixture(autouse=True)
def _memory(monkeypatch):
    memory_home(monkeypatch)


class TestStates:
    @both
    def test_a_success_is_pending_running_completed(self, colour: Colour):
        state = in_flow(colour, colour.task(failing(0)))
        assert (state.name, state.result(_sync=True)) == ("Completed", 1)
        assert task_states("work") == [["Pending", "Running", "Completed"]]

    @both
    def test_a_direct_call_is_created_and_started_in_one_line_of_the_log(self, colour: Colour):
        in_flow(colour, colour.task(failing(0)))
        reading = current_client().store.read(fold().run_id)
        lines = [record.position for record in reading.records if record.data.get("run")]
        assert len(lines) == 3  # created (Pending), Running; then Completed
        assert len(set(lines)) == 2

    @both
    def test_a_failure_raises_the_very_exception(self, colour: Colour):
        made = colour.task(failing(1))
        with pytest.raises(ValueError) as caught:
            colour.run(made)
        assert caught.value is FAILURE
        state = in_flow(colour, colour.task(failing(1)))
        assert (state.name, state.data) == ("Failed", FAILURE)
        assert state.message is not None
        assert state.message.startswith("Task run encountered an exception: ValueError: no")
        assert task_states("work") == [["Pending", "Running", "Failed"]]

    @both
    def test_a_timeout_error_of_the_user_is_named_timed_out(self, colour: Colour):
        @colour.task
        def slow():
            raise TimeoutError("mine")

        with pytest.raises(TimeoutError, match="mine"):
            colour.run(slow)
        assert in_flow(colour, slow).name == "TimedOut"

    @both
    def test_stop_iteration_is_an_ordinary_failure(self, colour: Colour):
        made = colour.task(lambda: next(iter(())))
        state = in_flow(colour, made)
        assert state.is_failed()
        # Python itself makes a RuntimeError of one that leaves a coroutine (PEP 479)
        assert isinstance(state.data, RuntimeError if colour.isasync else StopIteration)

    @both
    def test_moments_and_counts_follow_the_states(self, colour: Colour):
        in_flow(colour, colour.task(failing(1), retries=1))
        (key,) = task_ids("work")
        pending, running, _, completed = fold().task_states(key)
        recorded = fold().task_run(key)
        assert (recorded.expected_start_time, recorded.start_time) == (pending.timestamp, running.timestamp)
        assert (recorded.end_time, recorded.run_count) == (completed.timestamp, 2)
        assert len({state.at for state in fold().task_states(key)}) == 4

    @pins("task_engine", 91)
    @both
    def test_details_carry_the_task_run_and_inside_of_flows_the_flow_run(self, colour: Colour):
        made = colour.task(lambda: 1)
        outside = colour.run(made, return_state=True).state_details
        inside = in_flow(colour, made).state_details
        assert outside.task_run_id is not None
        assert outside.flow_run_id is None
        assert str(inside.flow_run_id) == fold().run_id


class TestReturnedStates:
    @pins("task_engine", 74)
    @both
    def test_a_state_made_by_hand_is_the_final_state(self, colour: Colour):
        made = colour.task(lambda: State("FAILED", message="m", data=True))
        state = in_flow(colour, made)
        assert (state.type, state.message, state.result(raise_on_failure=False, _sync=True)) == ("FAILED", "m", True)
        with pytest.raises(TypeError):
            state.result(_sync=True)

    @pins("task_engine", 79, 80)
    @both
    @pytest.mark.parametrize(
        ("make", "name", "message"),
        [
            (lambda: [Completed(), Failed()], "Failed", "1/2 states failed."),
            (lambda: (Cancelled(), Failed(), Completed()), "Cancelled", "1/3 states cancelled."),
            (lambda: {Completed()}, "Completed", "All states completed."),
            (lambda: [Running(), Completed()], "Failed", "1/2 states not final."),
            (lambda: [Paused()], "Paused", "1/1 states paused."),
        ],
        ids=["failed", "cancelled", "completed", "not-final", "paused"],
    )
    def test_a_collection_of_states_is_aggregated_and_returned(self, colour: Colour, make, name, message):
        made = colour.task(make, name="states")
        states = colour.run(made)
        assert isinstance(states, (list, tuple, set))
        state = in_flow(colour, made)
        assert (state.name, state.message) == (name, message)

    @pins("task_engine", 77, 80)
    @both
    @pytest.mark.parametrize("value", [{"a": Failed()}, [Failed(), 1], [], ValueError("returned")])
    def test_anything_else_is_a_value(self, colour: Colour, value):
        made = colour.task(lambda: value)
        assert colour.run(made) is value
        assert in_flow(colour, made).is_completed()

    @both
    def test_a_returned_generator_is_given_and_kept_as_a_list(self, colour: Colour):
        made = colour.task(lambda: (number for number in (1, 2)))
        assert in_flow(colour, made).result(_sync=True) == [1, 2]
        assert colour.run(made) == [1, 2]

    @both
    def test_a_returned_future_is_a_value_like_any_other(self, colour: Colour):
        future = ConcurrentFuture[int](uuid4(), Future())
        assert colour.run(colour.task(lambda: future)) is future

    @pins("task_engine", 75)
    @both
    def test_a_returned_failed_state_is_retried(self, colour: Colour):
        calls: list[int] = []

        @colour.task(retries=2)
        def work():
            calls.append(1)
            return Failed(message="again") if len(calls) < 2 else "done"

        assert in_flow(colour, work).result(_sync=True) == "done"
        assert task_states("work") == [["Pending", "Running", "Retrying", "Completed"]]

    @pins("task_engine", 78)
    @both
    def test_a_state_returned_twice_counts_as_an_upstream_the_second_time(self, colour: Colour):
        shared = Completed(data=1)
        made = colour.task(lambda: shared)
        assert in_flow(colour, made).message is None
        assert colour.run(made, return_state=True).message == "All states completed."


@dataclasses.dataclass(frozen=True)
class Held:
    """An argument with fields."""

    things: list[Any]


class TestUpstreams:
    @pins("task_engine", 40, 41, 42, 49)
    @both
    @pytest.mark.parametrize(
        "wrap", [lambda f: f, lambda f: [f], lambda f: {"k": (1, {"deep": f})}, lambda f: {f: 1}, lambda f: Held([f])]
    )
    def test_a_failed_upstream_anywhere_in_an_argument_leaves_the_run_not_ready(self, colour: Colour, wrap, caplog):
        called, seen = Witness(), list[Any]()

        @colour.task
        def consumer(value):
            called.saw(value)

        @colour.flow
        def body():
            broken = colour.task(failing(1)).submit()
            direct = yield consumer(wrap(broken), return_state=True)
            submitted = consumer.submit(wrap(broken))
            follower = consumer.submit(submitted)
            assert (yield consumer(wrap(broken))) is None
            follower.wait()
            seen.extend((broken.task_run_id, direct, submitted, follower))

        with caplog.at_level("ERROR"):
            colour.run(body)
        assert "Finished in state NotReady(" in caplog.text
        broken_id, direct, submitted, follower = seen
        for state in (direct, submitted.state):
            assert (state.type, state.name) == ("PENDING", "NotReady")
            assert f"Upstream task run '{broken_id}' did not reach a 'COMPLETED' state" in state.message
        assert str(submitted.task_run_id) in follower.state.message
        assert not called
        assert set(map(tuple, task_states("consumer"))) == {("Pending", "NotReady")}

    @pins("task_engine", 43, 44, 45)
    @both
    def test_allow_failure_lets_failed_and_not_ready_through_but_nothing_else(self, colour: Colour):
        identity = colour.task(lambda value: value, name="identity")

        @colour.flow
        def body():
            broken = colour.task(failing(1)).submit()
            stuck = identity.submit(broken)
            values = []
            for value in (broken, [broken, 1], stuck, {"a": broken}):
                values.append((yield identity(allow_failure(value))))
            states = []
            for state in (Crashed(), Cancelled(), Pending()):
                states.append((yield identity(allow_failure(state), return_state=True)).name)
            return quote((values, states))

        values, states = colour.run(body).unwrap()
        assert values == [FAILURE, [FAILURE, 1], None, {"a": FAILURE}]
        assert states == ["NotReady"] * 3

    @pins("task_engine", 46, 47)
    @both
    def test_wait_for_waits_and_obeys_the_same_rules(self, colour: Colour):
        identity = colour.task(lambda value: value, name="identity")

        @colour.flow
        def body():
            good, broken = identity.submit(1), colour.task(failing(1)).submit()
            stuck = identity.submit(broken)
            names = []
            mapped = identity.map([broken, stuck, 1])
            for wait_for in (good, [good, 5], [broken], [allow_failure([broken, stuck])], [Failed()], "plain"):
                names.append((yield identity(1, wait_for=wait_for, return_state=True)).name)
            names.append((yield identity(1, wait_for=[allow_failure(mapped)], return_state=True)).name)
            return quote(names)

        expected = ["Completed", "Completed", "NotReady", "Completed", "NotReady", "Completed", "Completed"]
        assert colour.run(body).unwrap() == expected

    @pins("task_engine", 50, 52)
    @both
    def test_states_are_replaced_by_their_results_also_inside_of_results(self, colour: Colour):
        identity = colour.task(lambda value: value)
        assert colour.run(identity, Completed(data=[Completed(data=4)])) == [4]
        assert colour.run(identity, {Completed(data="key"): 1}) == {"key": 1}
        with pytest.raises(UpstreamTaskError):
            raise_not_ready(colour.run(identity, [Failed()], return_state=True))

    @pins("task_engine", 53)
    @both
    def test_opaque_and_quote_keep_what_they_hold_from_being_looked_into(self, colour: Colour):
        identity = colour.task(lambda value: value)
        inner = Completed(data=1)
        assert colour.run(identity, opaque(Completed(data={"x": inner})))["x"] is inner
        assert colour.run(identity, quote([inner]))[0] is inner

    @pins("task_engine", 51)
    @both
    def test_a_completed_state_without_data_is_the_callers_error(self, colour: Colour):
        identity = colour.task(lambda value: value, name="identity")

        @colour.flow
        def body():
            with pytest.raises(MissingResult):
                yield identity(Completed())

        colour.run(body)
        assert task_states("<lambda>") == [["Pending"]]

    @both
    def test_a_container_that_cannot_be_rebuilt_names_the_parameter(self, colour: Colour):
        class Stubborn(list[Any]):
            def __init__(self, *items: Any) -> None:
                super().__init__(items)

            def __copy__(self) -> Any:
                raise RuntimeError("no copies")

            def __reduce_ex__(self, protocol: Any) -> Any:
                raise RuntimeError("no copies")

        identity = colour.task(lambda value: value)
        untouched = Stubborn(1)
        assert colour.run(identity, untouched) is untouched
        with pytest.raises(MicroflowException, match="parameter 'value' of task '<lambda>': a .*Stubborn cannot"):
            colour.run(identity, Stubborn(Completed(data=1)))

    @both
    def test_a_task_that_waits_for_itself_is_told_so(self, colour: Colour):
        identity = colour.task(lambda value: value)

        @colour.flow
        def body():
            context = FlowRunContext.get()
            assert context is not None
            first = identity.submit(1)
            engine_run = identity.submit(2)
            own: list[Any] = []
            with pytest.raises(ValueError, match=r"depending on itself.*deadlock"):
                yield run_task(
                    identity, task_run_id=first.task_run_id, parameters={"value": 1}, wait_for=[first, engine_run, own]
                )

        colour.run(body)

    @both
    def test_inputs_name_each_upstream_once(self, colour: Colour):
        @colour.task
        def consumer(a, b, *more, **named):
            return None

        @colour.flow
        def body():
            one = colour.task(lambda: 1).submit()
            two = colour.task(lambda: 2).submit()
            yield consumer([one, one, {"k": two}], 5, wait_for=[two])
            yield consumer(quote(one), opaque(two), two, x=one)
            return quote((str(one.task_run_id), str(two.task_run_id)))

        one, two = colour.run(body).unwrap()
        first, second = (fold().tasks[key].created["inputs"] for key in task_ids("consumer"))
        ones, twos = [["task_run", one]], [["task_run", two]]
        assert first == {"a": ones + twos, "b": [], "more": [], "named": [], "wait_for": twos}
        assert second == {"a": [], "b": twos, "more": twos, "named": ones}


def raise_not_ready(state: State[Any]) -> None:
    assert state.name == "NotReady"
    raise UpstreamTaskError(state.message)


class TestInterrupts:
    @both
    @pytest.mark.parametrize(
        ("interrupt", "text"),
        [
            (KeyboardInterrupt, "Execution was aborted by an interrupt signal"),
            (SystemExit, "Execution was aborted by a system exit"),
            (asyncio.CancelledError, "cancelled by the runtime environment"),
        ],
    )
    @pins("task_engine", 106)
    def test_an_interrupt_is_recorded_not_retried_and_goes_on(self, colour: Colour, interrupt, text):
        calls = Witness()

        @colour.task(retries=3)
        def work():
            calls.saw("work")
            raise interrupt

        @colour.flow
        def body():
            yield work()

        with pytest.raises(interrupt):
            colour.run(body)
        assert calls["work"] == 1
        assert task_states("work") == [["Pending", "Running", "Crashed"]]
        (key,) = task_ids("work")
        assert text in (fold().task_states(key)[-1].message or "")

    @both
    @pins("task_engine", 106)
    def test_an_interrupt_before_running_is_recorded_as_well(self, colour: Colour):
        def name():
            raise KeyboardInterrupt

        made = colour.task(lambda: 1, task_run_name=name)

        @colour.flow
        def body():
            yield made()

        with pytest.raises(KeyboardInterrupt):
            colour.run(body)
        assert task_states("<lambda>") == [["Pending", "Crashed"]]

    @both
    @pins("task_engine", 111)
    def test_abort_leaves_the_state_and_is_logged(self, colour: Colour, caplog):
        @colour.task
        def work():
            raise Abort("enough")

        @colour.flow
        def body():
            yield work()

        with pytest.raises(Abort):
            colour.run(body)
        assert task_states("work") == [["Pending", "Running"]]
        assert "Task run was aborted: enough" in caplog.text

    def test_a_cancelled_coroutine_is_recorded(self):
        started = asyncio.Event

        @task
        async def forever(event):
            event.set()
            await asyncio.Event().wait()

        @flow
        async def body():
            event = started()
            running = asyncio.ensure_future(forever(opaque(event)))
            await event.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

        run(body())
        assert task_states("forever") == [["Pending", "Running", "Crashed"]]


class TestLogging:
    @both
    def test_the_last_line_says_how_the_run_ended(self, colour: Colour, caplog):
        caplog.set_level(logging.INFO)
        in_flow(colour, colour.task(lambda: 1))
        in_flow(colour, colour.task(lambda value: 1), value=Failed())
        of_tasks = [record for record in caplog.records if record.name == "microflow.task_runs"]
        last = [record for record in of_tasks if "Finished" in record.msg]
        assert [record.levelname for record in last] == ["INFO", "ERROR"]
        assert last[0].getMessage() == "Finished in state Completed()"
        assert last[1].getMessage().startswith("Finished in state NotReady(")
        assert (last[0].task_name, last[0].flow_name) == ("<lambda>", "body")  # type: ignore[attr-defined]

    @both
    def test_in_detail_it_says_what_was_created_renamed_and_executed(self, colour: Colour, caplog):
        caplog.set_level(logging.DEBUG)
        in_flow(colour, colour.task(lambda: 1, name="work", task_run_name="own"))
        lines = [record.getMessage() for record in caplog.records if record.name == "microflow.task_runs"]
        assert [line.split()[0] for line in lines] == ["Created", "Renamed", "Executing", "Finished"]
        assert lines[1].endswith("to 'own'")
        assert lines[2] == "Executing task 'work' for task run 'own'"
        assert lines[3].startswith("Finished in state Completed(message=None, type=COMPLETED, result=")

    @both
    @pins("task_engine", 6)
    def test_a_run_that_stays_pending_gets_a_hint(self, colour: Colour, caplog):
        made = colour.task(lambda: 1, task_run_name="{nothing}")
        with pytest.raises(KeyError):
            colour.run(made)
        assert "Please wait for all submitted tasks" in caplog.text

    def test_nothing_is_formatted_when_the_level_is_off(self, caplog):
        caplog.set_level(logging.CRITICAL)

        class Loud:
            def __repr__(self):
                raise AssertionError("formatted for nobody")

        with pytest.raises(FailedRun):
            run_state(task(lambda: Failed(data=None, message="m", name="F")))
        assert task(lambda value: 1)(Loud()) == 1


def run_state(made: Any) -> None:
    made(return_state=True).result(_sync=True)


class TestEngine:
    def test_it_has_no_state_before_it_has_a_run(self):
        engine: SyncTaskRunEngine[Any] = SyncTaskRunEngine(task(lambda: 1))
        assert not engine.is_running()
        assert not engine.is_cancelled()
        with pytest.raises(ValueError, match="no task run yet"):
            engine.state

    def test_an_overridden_public_step_is_felt(self, monkeypatch):
        seen: list[str] = []
        real = SyncTaskRunEngine.begin_run
        monkeypatch.setattr(SyncTaskRunEngine, "begin_run", lambda self: (seen.append("sync"), real(self)))

        async def begin(self):
            seen.append("async")
            await self._begin_run()

        monkeypatch.setattr(AsyncTaskRunEngine, "begin_run", begin)
        task(lambda: 1)()

        @task
        async def later():
            return 1

        run(later())
        assert seen == ["sync", "async"]

    @both
    def test_run_task_takes_an_id_and_an_existing_run(self, colour: Colour):
        made = colour.task(lambda x: x + 1)
        state = run(run_task(made, parameters={"x": 1}, return_type="state"))
        recorded = current_client().read_task_run(state.state_details.task_run_id)
        assert recorded.state_name == "Completed"
        assert run(run_task(made, task_run_id=recorded.id, parameters={"x": 2})) == 3

    @both
    def test_a_set_cancel_event_cancels_the_run_in_place_of_its_body(self, colour: Colour):
        import threading

        event, called = threading.Event(), Witness()
        event.set()
        made = colour.task(lambda: called.saw("body"))
        with pytest.raises(CancelledRun):
            run(run_task(made, context={"cancel_event": event}))
        state = run(run_task(made, context={"cancel_event": event}, return_type="state"))
        assert state.is_cancelled()
        assert not called

    def test_the_blocking_engine_does_not_need_asyncio(self):
        assert run_task_sync(task(lambda: 1)) == 1

    def test_returned_states_of_which_one_failed_are_handed_back_as_they_were_given(self):
        states = [Failed(message="no"), Completed(data=1)]
        engine: Any = SyncTaskRunEngine(task(lambda: states))
        engine._hand_back(Failed(data=Value(states)))
        assert engine.result() == states
