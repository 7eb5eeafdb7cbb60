# SPDX-License-Identifier: Apache-2.0
"""Time limits of task runs: what they interrupt, what they cannot, and what is recorded."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from microflow import flow, task
from microflow._arguments import opaque, quote
from microflow._timeouts import TimeIsUp
from microflow._timeouts import limit as start_limit
from microflow._waits import BlockingWaits, finish
from microflow.client.orchestration import current_client
from microflow.task_engine import TaskRunTimeoutError
from tests.behaviour_support import pins
from tests.support import PATIENCE, Colour, Witness, both, memory_home, run, task_states

if TYPE_CHECKING:
    from microflow.states import State

# the time limit of the tests themselves must leave the process's one alarm to what is tested here
pytestmark = pytest.mark.timeout(60, method="thread")

SHORT = 0.05
BUSY = time.sleep  # blocks the loop, which is what a test of it wants


@pytest.fixture(autouse=True)
def _memory(monkeypatch):
    memory_home(monkeypatch)


@pytest.fixture(autouse=True)
def _no_alarm_is_left():
    """A limit that has ended leaves neither a timer nor a handler behind."""
    yield
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def forever(colour: Colour, seen: list[Any] | None = None) -> Any:
    """A body that never returns by itself."""

    def body():
        if seen is not None:
            seen.append(time.monotonic())
        yield asyncio.sleep(PATIENCE) if colour.isasync else time.sleep(PATIENCE)

    return body


def state_of(colour: Colour, made: Any) -> State[Any]:
    """How a task that is called in a flow ends."""

    @colour.flow
    def main():
        return quote((yield made(return_state=True)))

    state: State[Any] = colour.run(main).unwrap()
    return state


@both
@pins("task_engine", 104)
def test_a_run_that_takes_too_long_is_interrupted_and_failed_as_timed_out(colour: Colour):
    made = colour.task(forever(colour), name="slow", timeout_seconds=SHORT)
    began = time.monotonic()
    state = state_of(colour, made)
    assert time.monotonic() - began < PATIENCE / 2
    assert (state.type, state.name, state.message) == (
        "FAILED",
        "TimedOut",
        f"Task run exceeded timeout of {SHORT} second(s)",
    )
    assert task_states("body") == [["Pending", "Running", "TimedOut"]]
    with pytest.raises(TaskRunTimeoutError, match=rf"task 'slow' timed out after {SHORT} second\(s\)"):
        colour.run(made)


@both
@pins("task_engine", 103)
def test_each_attempt_has_its_own_time(colour: Colour):
    seen: list[float] = []
    made = colour.task(forever(colour, seen), timeout_seconds=SHORT, retries=1)
    assert state_of(colour, made).name == "TimedOut"
    assert len(seen) == 2
    assert task_states("body") == [["Pending", "Running", "Retrying", "TimedOut"]]


@both
def test_what_ends_in_time_is_not_touched(colour: Colour):
    assert colour.run(colour.task(lambda: 5, timeout_seconds=PATIENCE)) == 5


@both
@pins("task_engine", 102)
def test_a_timeout_error_of_the_users_own_is_named_timed_out_and_its_hooks_run(colour: Colour):
    seen: list[str] = []
    mine = TimeoutError("mine")

    def raises():
        raise mine

    made = colour.task(raises, on_failure=[lambda task, run, state: seen.append(state.name)])
    with pytest.raises(TimeoutError) as caught:
        colour.run(made)
    assert caught.value is mine
    state = state_of(colour, made)
    assert (state.type, state.name, seen) == ("FAILED", "TimedOut", ["TimedOut", "TimedOut"])
    assert state.message is not None
    assert "failed due to timeout" in state.message


def swallowing(colour: Colour, kind: type[BaseException]) -> Any:
    """A task that takes too long, catches `kind` and returns a value."""

    def blocking() -> str:
        try:
            time.sleep(PATIENCE)
        except kind:
            pass
        return "swallowed"

    async def coroutine() -> str:
        try:
            await asyncio.sleep(PATIENCE)
        except kind:
            pass
        return "swallowed"

    options: dict[str, Any] = {"timeout_seconds": SHORT}
    return task(**options)(coroutine if colour.isasync else blocking)


@both
@pytest.mark.parametrize("kind", [Exception, BaseException])
def test_who_swallows_the_interrupt_is_late_all_the_same(colour: Colour, kind: type[BaseException]):
    """``except Exception`` lets it pass; the reference completes a blocking run that catches everything, and gives a
    value beside the state TimedOut of a coroutine."""
    made = swallowing(colour, kind)
    assert state_of(colour, made).name == "TimedOut"
    with pytest.raises(TaskRunTimeoutError):
        colour.run(made)


@pins("task_engine", 107)
def test_a_cancellation_of_the_users_own_is_a_crash_and_no_timeout():
    @task(timeout_seconds=PATIENCE)
    async def cancelled():
        raise asyncio.CancelledError

    @flow
    async def main():
        await cancelled()

    with pytest.raises(asyncio.CancelledError):
        run(main())
    assert task_states("cancelled") == [["Pending", "Running", "Crashed"]]


def test_a_coroutine_that_never_awaits_ends_normally_past_its_time():
    """A known hole: nothing can cancel it."""

    @task(timeout_seconds=0.001)
    async def blocks():
        BUSY(SHORT)
        return 1

    assert run(blocks()) == 1


def test_after_a_timeout_the_coroutine_around_it_is_not_cancelled():
    @task(timeout_seconds=SHORT)
    async def slow():
        await asyncio.sleep(PATIENCE)

    @flow
    async def main():
        await slow(return_state=True)
        await asyncio.sleep(0.001)
        return "went on"

    assert run(main()) == "went on"


class TestNested:
    def test_the_outer_limit_interrupts_the_inner_run_as_well(self):
        @task(timeout_seconds=PATIENCE)
        def inner():
            time.sleep(PATIENCE)

        @task(timeout_seconds=SHORT)
        def outer():
            inner()

        @flow
        def main():
            return quote(outer(return_state=True))

        assert main().unwrap().name == "TimedOut"
        assert task_states("outer") == [["Pending", "Running", "TimedOut"]]
        assert task_states("inner") == [["Pending", "Running", "Crashed"]]

    def test_the_inner_limit_leaves_the_outer_one_running(self):
        seen: list[str] = []

        @task(timeout_seconds=SHORT)
        def inner():
            time.sleep(PATIENCE)

        @task(timeout_seconds=0.3)
        def outer():
            seen.append(inner(return_state=True).name)
            time.sleep(PATIENCE)

        with pytest.raises(TaskRunTimeoutError, match="'outer'"):
            outer()
        assert seen == ["TimedOut"]

    def test_an_alarm_of_the_programs_own_is_left_alone(self):
        """Then the time is kept by a thread: nothing is interrupted, and the run is late when it is back."""
        rang: list[int] = []
        signal.signal(signal.SIGALRM, lambda number, frame: rang.append(number))
        try:

            @task(timeout_seconds=0.001)
            def slow():
                time.sleep(SHORT)

            assert slow(return_state=True).name == "TimedOut"
            signal.raise_signal(signal.SIGALRM)
            assert rang == [signal.SIGALRM]
        finally:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)


class TestAppends:
    def test_an_alarm_waits_for_the_end_of_an_append(self, monkeypatch):
        """Broken if an append could be cut in half: memory and log would differ."""
        store: Any = current_client().store
        real, cut, limit = store.append, Witness(), 10 * SHORT  # long enough to come to the append

        def slow_append(run_id: str, bodies: list[dict[str, Any]], **kwargs: Any) -> Any:
            if any(body.get("type") == "RUNNING" and "run" in body for body in bodies) and "inner" in str(bodies):
                try:
                    until = time.monotonic() + 1.5 * limit
                    while time.monotonic() < until:
                        time.sleep(SHORT / 10)
                except BaseException:
                    cut.saw("append")
                    raise
            return real(run_id, bodies, **kwargs)

        @task
        def inner():
            time.sleep(PATIENCE)

        @task(timeout_seconds=limit)
        def outer():
            inner()

        @flow
        def main():
            return quote(outer(return_state=True))

        monkeypatch.setattr(store, "append", slow_append, raising=False)
        assert main().unwrap().name == "TimedOut"
        assert not cut
        assert task_states("outer") == [["Pending", "Running", "TimedOut"]]
        assert task_states("inner") == [["Pending", "Running", "Crashed"]]

    def test_a_function_that_has_returned_is_not_interrupted_any_more(self):
        """The limit covers the function, not what is recorded of it."""
        limit = start_limit(SHORT / 5, isasync=False)
        time.sleep(SHORT)  # this is not a call of user code: the limit runs out and nobody is interrupted
        assert limit.close()

    def test_user_code_is_interrupted(self):
        """The control of the test above."""
        limit = start_limit(SHORT / 5, isasync=False)
        try:
            with pytest.raises(TimeIsUp) as caught:
                finish(BlockingWaits().call(time.sleep, PATIENCE))
            assert limit.owns(caught.value)
        finally:
            assert limit.close()


class TestWorkerThreads:
    @pins("task_engine", 105)
    def test_only_there_a_warning_says_that_nothing_can_be_interrupted(self, caplog):
        @task(timeout_seconds=PATIENCE)
        def quick():
            return 1

        @task(timeout_seconds=PATIENCE)
        async def coroutine():
            return 1

        @flow
        def main():
            quick()
            coroutine.submit().result()
            direct = len(caplog.records)
            quick.submit().result()
            return direct

        caplog.set_level(logging.WARNING)
        direct = main()
        assert direct == 0
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert "running in a worker thread" in record.getMessage()
        assert f"{PATIENCE:g} second(s)" in record.getMessage()

    @pytest.mark.parametrize("later", ["call", "submit", "subflow"])
    def test_the_result_is_there_at_once_and_later_calls_of_the_late_code_raise(self, later):
        go_on, gone, seen = threading.Event(), threading.Event(), list[Any]()

        @task
        def child():
            seen.append("child ran")

        @flow
        def subflow():
            seen.append("subflow ran")

        call: Any = {"call": child, "submit": child.submit, "subflow": subflow}[later]

        @task(timeout_seconds=SHORT)
        def slow(event):
            event.wait(PATIENCE)
            try:
                call()
            except Exception:
                seen.append("swallowed")
            finally:
                gone.set()
            seen.append("went on")

        @flow
        def main():
            future = slow.submit(opaque(go_on))
            with pytest.raises(TaskRunTimeoutError):
                future.result(timeout=PATIENCE)
            assert not go_on.is_set()
            assert "Python cannot interrupt a worker thread" in future.state.message
            assert task_states("slow", flow_run_ids_of(future)) == [["Pending", "Running", "TimedOut"]]
            go_on.set()
            assert gone.wait(PATIENCE)
            return "done"

        assert main() == "done"
        assert seen == []
        assert task_states("slow") == [["Pending", "Running", "TimedOut"]]

    def test_a_retry_begins_when_the_late_attempt_is_back(self):
        seen: list[int] = []

        @task(timeout_seconds=SHORT, retries=1)
        def slow():
            seen.append(1)
            if len(seen) == 1:
                time.sleep(3 * SHORT)
            return len(seen)

        @flow
        def main():
            return slow.submit().result()

        assert main() == 2
        assert task_states("slow") == [["Pending", "Running", "Retrying", "Completed"]]

    def test_no_timer_outlives_the_run(self):
        @task(timeout_seconds=PATIENCE)
        def quick():
            return 1

        @flow
        def main():
            return quick.submit().result()

        before = threading.active_count()
        assert main() == 1
        assert threading.active_count() == before


def flow_run_ids_of(future: Any) -> str:
    from microflow.context import FlowRunContext

    context = FlowRunContext.get()
    assert context is not None
    return str(context.flow_run.id)
