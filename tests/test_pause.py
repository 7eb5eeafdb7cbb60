# SPDX-License-Identifier: Apache-2.0
"""Pausing: who may, what is recorded, what ends it, and what waits meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from microflow import flow, get_client, pause_flow_run, resume_flow_run, task
from microflow.context import FlowRunContext
from microflow.exceptions import (
    CancelledRun,
    FlowPauseTimeout,
    NotPausedError,
    ObjectNotFound,
)
from microflow.flow_runs import apause_flow_run, aresume_flow_run, cancel_flow_run
from microflow.states import Pending, StateType
from microflow.task_runners import ThreadPoolTaskRunner

from .behaviour_support import pins
from .pause_support import own_run_id, when
from .support import PATIENCE, Witness, both, flow_run_ids, flow_states, fold, memory_home, task_ids, task_states


@pytest.fixture(autouse=True)
def home_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    memory_home(monkeypatch)


def resume(run_id: str) -> None:
    resume_flow_run(run_id, _sync=True)


# --------------------------------------------------------------------------------------------- the plain case


@both
def test_a_pause_holds_the_body_until_the_run_is_resumed(colour):
    seen = []

    @colour.flow
    def main():
        with when("PAUSED", lambda run_id: (seen.append("resumed"), resume(run_id))):
            yield pause_flow_run(timeout=PATIENCE)
        seen.append("went on")
        return 7

    assert colour.run(main) == 7
    assert seen == ["resumed", "went on"]
    assert flow_states() == ["Pending", "Running", "Paused", "Running", "Completed"]


@pins("flows", 100)
@both
def test_a_pause_outside_of_a_flow_run_is_refused(colour):
    with pytest.raises(RuntimeError, match="can only be paused from within a flow run"):
        colour.run(lambda: pause_flow_run(_sync=not colour.isasync))


def test_the_coroutine_form_pauses_like_the_other():
    @flow
    async def main() -> str:
        with when("PAUSED", lambda run_id: asyncio.run(aresume_flow_run(run_id))):
            await apause_flow_run(timeout=PATIENCE)
        return "done"

    assert asyncio.run(main()) == "done"


def test_what_is_recorded_of_a_pause_is_its_key_and_its_deadline():
    @flow
    def main() -> None:
        with when("PAUSED", resume):
            pause_flow_run(timeout=1000, key="approval")

    main()
    paused = fold().states[2]
    assert paused.state_details.pause_key == "approval"
    assert paused.state_details.pause_reschedule is False
    assert paused.state_details.pause_timeout is not None
    assert 990 < (paused.state_details.pause_timeout - paused.timestamp).total_seconds() <= 1000


@pins("flows", 113)
def test_a_pause_uses_up_no_retry():
    """One retry is left after a pause was resumed: the run is started twice."""
    starts = []

    @flow(retries=1)
    def main() -> str:
        starts.append(1)
        with when("PAUSED", resume):
            pause_flow_run(timeout=PATIENCE)
        if len(starts) == 1:
            raise ValueError("once")
        return "done"

    assert main() == "done"
    assert fold().flow_run.run_count == 2


def test_a_retry_pauses_again_where_the_first_attempt_did():
    pauses = []

    @flow(retries=1)
    def main() -> None:
        with when("PAUSED", lambda run_id: (pauses.append(1), resume(run_id))):
            pause_flow_run(timeout=PATIENCE, key="the same")
        if len(pauses) == 1:
            raise ValueError("once")

    main()
    assert len(pauses) == 2


@pins("flows", 103)
@both
def test_a_pause_whose_key_is_known_does_not_pause(colour):
    @colour.task
    def work(number):
        return number

    @colour.flow
    def main():
        with when("PAUSED", resume):
            yield pause_flow_run(timeout=PATIENCE, key="once")
        yield work(1)
        yield pause_flow_run(timeout=PATIENCE, key="once")
        yield work(2)

    colour.run(main)
    assert flow_states().count("Paused") == 1
    assert len(task_ids("work")) == 2


def test_keys_are_counted_also_by_pauses_that_name_theirs():
    @flow
    def main() -> None:
        with when("PAUSED", resume, times=3):
            pause_flow_run(timeout=PATIENCE, key="named")
            pause_flow_run(timeout=PATIENCE)
            pause_flow_run(timeout=PATIENCE)

    main()
    paused = [state for state in fold().states if state.is_paused()]
    assert [state.state_details.pause_key for state in paused] == ["named", "2", "3"]


@pytest.mark.parametrize(("timeout", "error"), [("soon", TypeError), (True, TypeError), (-1, ValueError)])
def test_a_bad_timeout_is_refused_before_anything_is_recorded(timeout, error):
    @flow
    def main() -> None:
        with pytest.raises(error):
            pause_flow_run(timeout=timeout)

    main()
    assert flow_states() == ["Pending", "Running", "Completed"]


# ---------------------------------------------------------------------------------------------- the deadline


@pins("flows", 101)
@both
def test_a_pause_that_nobody_resumes_fails_the_run_without_a_retry(colour):
    @colour.task
    def work(number):
        return number

    @colour.flow(retries=3)
    def main():
        yield work(1)
        yield pause_flow_run(timeout=0.05)
        yield work(2)

    with pytest.raises(FlowPauseTimeout, match="never resumed"):
        colour.run(main)
    run = fold()
    assert run.flow_run.state is not None
    assert run.flow_run.state.type is StateType.FAILED
    assert "never resumed" in str(run.flow_run.state.message)
    assert len(task_ids("work")) == 1
    assert run.flow_run.run_count == 1


def test_a_pause_that_expired_is_raised_as_such_from_the_state_too():
    @flow
    def main() -> None:
        pause_flow_run(timeout=0.01)

    with pytest.raises(FlowPauseTimeout, match="never resumed"):
        main(return_state=True).result()


@pins("flows", 116)
@both
def test_a_flow_that_catches_the_expiry_simply_goes_on(colour):
    """State and value agree; a resume that comes too late is told so, not that the run is not paused."""

    @colour.flow
    def main():
        try:
            yield pause_flow_run(timeout=0.01)
        except FlowPauseTimeout:
            with pytest.raises(FlowPauseTimeout, match="can no longer be resumed"):
                resume(own_run_id())
            return "without an answer"

    assert colour.run(main) == "without an answer"
    assert flow_states() == ["Pending", "Running", "Paused", "Running", "Completed"]


def test_no_timeout_means_no_deadline():
    @flow
    def main() -> None:
        with when("PAUSED", resume):
            pause_flow_run(timeout=None)

    main()
    assert fold().states[2].state_details.pause_timeout is None


def test_the_example_of_the_page(capsys):
    """As written there, but for the seconds that its task sleeps; nobody resumes it."""

    @task
    def task_one():
        for _ in range(3):
            time.sleep(0.001)

    @flow
    def my_flow():
        terminal_state = task_one.submit(return_state=True)
        if terminal_state.type == StateType.COMPLETED:
            print("Task one succeeded! Pausing flow run..")
            pause_flow_run(timeout=2)
        else:
            print("Task one failed. Skipping pause flow run..")

    began = time.monotonic()
    with pytest.raises(FlowPauseTimeout):
        my_flow()
    assert time.monotonic() - began >= 2
    assert "Pausing flow run" in capsys.readouterr().out
    assert flow_states() == ["Pending", "Running", "Paused", "Running", "Failed"]


# ----------------------------------------------------------------------------------------- pauses in tasks


@both
@pytest.mark.parametrize("submitted", [False, True], ids=["called", "submitted"])
def test_a_task_pauses_its_flow_run_and_stays_running_itself(colour, submitted):
    states = []

    def note_and_resume(run_id: str) -> None:
        (task_run,) = get_client(sync_client=True).read_task_runs(flow_run_id=run_id)
        states.append(task_run.state_name)
        resume(run_id)

    @colour.task
    def ask():
        yield pause_flow_run(timeout=PATIENCE)
        return "answered"

    @colour.flow
    def main():
        with when("PAUSED", note_and_resume):
            return (yield ask.submit() if submitted else ask())

    assert colour.run(main) == "answered"
    assert states == ["Running"]
    assert flow_states() == ["Pending", "Running", "Paused", "Running", "Completed"]


def test_an_expired_pause_in_a_task_is_a_failure_of_the_task_that_its_retries_apply_to():
    @task(retries=1)
    def ask() -> None:
        pause_flow_run(timeout=0.01)

    @flow
    def main() -> str:
        with pytest.raises(FlowPauseTimeout):
            ask()
        return "went on"

    assert main() == "went on"
    assert task_states("ask") == [["Pending", "Running", "Retrying", "Failed"]]


def test_a_subflow_pauses_itself_alone():
    seen = []

    def note_and_resume(run_id: str) -> None:
        seen.extend(fold(each).flow_run.state_name for each in flow_run_ids("parent"))
        resume(run_id)

    @flow
    def child() -> str:
        with when("PAUSED", note_and_resume):
            pause_flow_run(timeout=PATIENCE)
        return "done"

    @flow
    def parent() -> str:
        return child()

    assert parent() == "done"
    assert seen == ["Running"]


@pins("flows", 114)
def test_two_pauses_at_once_wait_in_turn():
    @task
    def ask(number: int) -> int:
        pause_flow_run(timeout=PATIENCE, key=f"number {number}")
        return number

    @flow
    def main() -> list[int]:
        with when("PAUSED", resume, times=2):
            return ask.map([1, 2]).result()

    assert main() == [1, 2]
    assert flow_states() == ["Pending", "Running", "Paused", "Running", "Paused", "Running", "Completed"]


# ------------------------------------------------------------------------------------- what is held meanwhile


@both
def test_no_task_run_starts_while_the_run_is_paused(colour):
    """What is submitted meanwhile is PENDING, named Held, and runs after the resume; what runs goes on."""
    executed = Witness()
    held, started = threading.Event(), threading.Event()

    @colour.task
    def later(number):
        executed.saw(number)
        return number

    @colour.task
    def ask():
        started.set()
        yield pause_flow_run(timeout=PATIENCE)

    def wait_and_resume(run_id: str) -> None:
        bus = get_client(sync_client=True).store.bus
        end = bus.subscribe_log(run_id, lambda record: held.set() if record.data.get("name") == "Held" else None)
        may_submit.set()
        assert held.wait(PATIENCE)
        end()
        assert not executed
        resume(run_id)

    may_submit = threading.Event()

    @colour.flow
    def main():
        with when("PAUSED", wait_and_resume):
            asked = ask.submit()
            assert may_submit.wait(PATIENCE)
            yield later.submit(1)
            yield asked

    colour.run(main)
    assert executed == {1: 1}
    assert task_states("later") == [["Pending", "Held", "Running", "Completed"]]


def test_a_task_that_is_called_while_the_run_is_paused_waits_too():
    order = []
    paused = threading.Event()

    @task
    def ask() -> None:
        pause_flow_run(timeout=PATIENCE)

    @task
    def work() -> None:
        order.append("work")

    def resume_later(run_id: str) -> None:
        end = get_client(sync_client=True).store.bus.subscribe_log(
            run_id, lambda record: held.set() if record.data.get("name") == "Held" else None
        )
        paused.set()
        assert held.wait(PATIENCE)
        end()
        order.append("resume")
        resume(run_id)

    held = threading.Event()

    @flow
    def main() -> None:
        with when("PAUSED", resume_later):
            asked = ask.submit()
            assert paused.wait(PATIENCE)
            work()
            asked.result()

    main()
    assert order == ["resume", "work"]


def test_held_runs_take_no_more_threads_than_workers():
    before = threading.active_count()
    most = []
    held = threading.Semaphore(0)

    @task
    def ask() -> None:
        pause_flow_run(timeout=PATIENCE)

    @task
    def work(number: int) -> int:
        return number

    def resume_later(run_id: str) -> None:
        end = get_client(sync_client=True).store.bus.subscribe_log(
            run_id, lambda record: held.release() if record.data.get("name") == "Held" else None
        )
        paused.set()
        for _ in range(2):
            assert held.acquire(timeout=PATIENCE)
        end()
        most.append(threading.active_count())
        resume(run_id)

    paused = threading.Event()

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=3))
    def main() -> list[int]:
        with when("PAUSED", resume_later):
            asked = ask.submit()
            assert paused.wait(PATIENCE)
            futures = work.map(range(50))
            asked.result()
            return futures.result()

    assert main() == list(range(50))
    assert most[0] <= before + 5  # three workers, one that took the slot of the paused task, the resumer


def test_what_is_held_when_the_flow_ends_is_cancelled():
    """A body that fails while a task of it is paused does not start what the pause held back."""
    executed = Witness()
    paused, held = threading.Event(), threading.Event()

    @task
    def ask() -> None:
        try:
            pause_flow_run(timeout=0.2)
        except FlowPauseTimeout:
            pass

    @task
    def work() -> None:
        executed.saw("work")

    def note(run_id: str) -> None:
        get_client(sync_client=True).store.bus.subscribe_log(
            run_id, lambda record: held.set() if record.data.get("name") == "Held" else None
        )
        paused.set()

    @flow
    def main() -> None:
        with when("PAUSED", note):
            ask.submit()
            assert paused.wait(PATIENCE)
            work.submit()
            assert held.wait(PATIENCE)
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        main()
    assert not executed
    assert task_states("work") == [["Pending", "Held", "Cancelled"]]


# ----------------------------------------------------------------------------------------------- resuming


@pins("flows", 125, 128)
@both
def test_only_a_paused_run_can_be_resumed(colour):
    @colour.flow
    def main():
        with pytest.raises(NotPausedError, match="Cannot resume a run that isn't paused"):
            yield resume_flow_run(own_run_id())

    colour.run(main)
    with pytest.raises(NotPausedError, match="Cannot resume a run that isn't paused"):
        resume(flow_run_ids()[0])
    pending = get_client(sync_client=True).create_flow_run(main, state=Pending())
    with pytest.raises(NotPausedError, match="is in state Pending"):
        resume(str(pending.id))
    with pytest.raises(ObjectNotFound):
        resume("01a1fc5b-c97b-7c32-bcb6-906012357f80")


@pins("flows", 128)
def test_outside_of_runs_a_resume_is_a_plain_call_or_where_a_loop_runs_a_coroutine():
    unknown = "01a1fc5b-c97b-7c32-bcb6-906012357f80"
    with pytest.raises(ObjectNotFound):
        resume_flow_run(unknown)

    async def main() -> None:
        coroutine = resume_flow_run(unknown)
        with pytest.raises(ObjectNotFound):
            await coroutine

    asyncio.run(main())


@pins("flows", 126)
def test_of_many_resumes_at_once_exactly_one_wins():
    outcomes: list[Any] = []

    def race(run_id: str) -> None:
        barrier = threading.Barrier(8)

        def one() -> None:
            barrier.wait(PATIENCE)
            try:
                outcomes.append(resume(run_id))
            except NotPausedError as error:
                outcomes.append(error)

        threads = [threading.Thread(target=one) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)

    @flow
    def main() -> None:
        with when("PAUSED", race):
            pause_flow_run(timeout=PATIENCE)

    main()
    assert sorted(type(each).__name__ for each in outcomes) == ["NoneType"] + ["NotPausedError"] * 7
    assert flow_states().count("Running") == 2


# ---------------------------------------------------------------------------------------- cancelled while paused


@pins("flows", 115)
@both
def test_a_paused_run_that_is_cancelled_ends_at_once(colour):
    hooks = []

    @colour.flow(on_cancellation=[lambda *args: hooks.append(args[2].type)], on_failure=[lambda *args: hooks.append(0)])
    def main():
        with when("PAUSED", cancel_flow_run):
            yield pause_flow_run(timeout=PATIENCE)
        raise AssertionError("not reached")

    began = time.monotonic()
    with pytest.raises(CancelledRun):
        colour.run(main)
    assert time.monotonic() - began < PATIENCE / 2
    assert flow_states() == ["Pending", "Running", "Paused", "Cancelling", "Cancelled"]
    assert hooks == [StateType.CANCELLING]


@both
def test_a_pause_and_its_resume_are_on_the_disk_before_anybody_acts_on_them(colour, private_home, monkeypatch):
    """With durability ``disk``: what was answered survives a power cut."""
    monkeypatch.setenv("MICROFLOW_HOME", str(private_home))
    monkeypatch.setenv("MICROFLOW_DURABILITY", "disk")
    store: Any = get_client(sync_client=True).store
    synced: list[int] = []
    real = store.sync

    def sync(run_id: str, position: int) -> None:
        synced.append(position)
        real(run_id, position)

    monkeypatch.setattr(store, "sync", sync)

    @colour.flow
    def main():
        with when("PAUSED", resume):
            yield pause_flow_run(timeout=PATIENCE)

    colour.run(main)
    assert len(synced) == 4  # the claim, the pause, the resume and the end; either side may find both in the middle
    assert sorted(synced)[:1] + sorted(synced)[-2:] == [1, 4, 5]


def test_the_deadline_of_a_second_pause_is_its_own():
    """A task that is held meanwhile does not take the place of the one who waits in the second pause."""
    held = threading.Event()

    @task
    def first() -> None:
        pause_flow_run(timeout=PATIENCE, key="first")

    @task
    def second() -> str:
        held.wait(PATIENCE)
        with pytest.raises(FlowPauseTimeout):
            pause_flow_run(timeout=0.3, key="second")
        return "expired"

    @task
    def later() -> None: ...

    def resume_the_first(run_id: str) -> None:
        held.set()
        resume(run_id)

    @flow
    def main() -> str:
        with when("PAUSED", resume_the_first):
            first.submit()
            answer = second.submit()
            held.wait(PATIENCE)
            later.submit()
            return str(answer.result())

    assert main() == "expired"


def test_a_task_that_pauses_its_cancelled_run_is_cancelled_too():
    @task
    def ask() -> None:
        pause_flow_run(timeout=PATIENCE)

    @flow
    def main() -> None:
        with when("PAUSED", cancel_flow_run):
            ask.submit().result()

    assert main(return_state=True).type is StateType.CANCELLED


def test_a_pause_whose_asyncio_task_is_cancelled_ends():
    """The run is not left PAUSED by code that does not wait any more."""

    @flow
    async def main() -> str:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(apause_flow_run(timeout=PATIENCE), 0.05)
        assert FlowRunContext.get().flow_run.state_name == "Running"  # type: ignore[union-attr]  # in a flow
        return "done"

    assert asyncio.run(main()) == "done"
