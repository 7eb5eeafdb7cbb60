# SPDX-License-Identifier: Apache-2.0
"""Edges of a flow run's life that no other file has a place for: odd ends, retries, contexts, odd moments."""

from __future__ import annotations

import functools
import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest

from microflow import flow, suspend_flow_run, task
from microflow._flow_lifecycle import BaseFlowRunEngine
from microflow.client.orchestration import current_client
from microflow.context import FlowRunContext, TaskRunContext, get_run_context
from microflow.entrypoints import load_entrypoint
from microflow.exceptions import CancelledRun, FailedRun, NoSpace, Pause, PausedRun
from microflow.flow_engine import run_flow
from microflow.flow_runs import cancel_flow_run, rerun
from microflow.states import Cancelled, Completed, Failed, Paused, Running, State, StateType
from microflow.task_runners import ThreadPoolTaskRunner

from .behaviour_support import pins
from .pause_support import own_run_id
from .support import PATIENCE, Witness, both, death_after, flow_run_ids, flow_states, fold, memory_home, task_states

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def home_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    memory_home(monkeypatch)


# ------------------------------------------------------------------------------------------------- final states


@pins("flows", 39)
@both
def test_a_failed_state_that_was_made_by_hand_keeps_its_data_and_message(colour):
    main = colour.flow(lambda: State("FAILED", message="m", data="hello!"))
    state = colour.run(main, return_state=True)
    assert (state.type, state.message) == (StateType.FAILED, "m")
    assert state.read_result(raise_on_failure=False) == "hello!"
    with pytest.raises(FailedRun, match="hello!"):
        colour.run(main)


@pins("flows", 43)
def test_the_cancelled_state_of_a_subflow_cancels_the_flow_that_returns_it():
    @flow
    def child() -> Any:
        return Cancelled()

    @flow
    def parent() -> Any:
        return child(return_state=True)

    state = parent(return_state=True)
    assert (state.type, state.message) == (StateType.CANCELLED, "1/1 states cancelled.")


@pins("flows", 47)
@both
def test_a_returned_paused_state_pauses_the_run_and_has_no_result(colour):
    main = colour.flow(lambda: Paused())
    assert colour.run(main, return_state=True).is_paused()
    with pytest.raises(PausedRun, match="result is not available"):
        colour.run(main)


@pins("flows", 50)
@both
def test_a_flow_that_keeps_nothing_in_memory_still_gives_value_and_error(colour):
    assert colour.run(colour.flow(lambda: 5, cache_result_in_memory=False)) == 5
    with pytest.raises(ZeroDivisionError):
        colour.run(colour.flow(lambda: 1 / 0, cache_result_in_memory=False))


@pins("flows", 53)
def test_what_is_queued_when_the_flow_returns_is_cancelled_and_what_runs_is_waited_for():
    started, release, executed = threading.Event(), threading.Event(), Witness()

    @task
    def work(number: int) -> None:
        executed.saw(number)
        started.set()
        release.wait(PATIENCE)

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=1))
    def main() -> str:
        for number in range(3):
            work.submit(number)
        assert started.wait(PATIENCE)
        threading.Timer(0.02, release.set).start()
        return "returned"

    assert main() == "returned"
    assert executed == {0: 1}
    assert [states[-1] for states in task_states("work")] == ["Completed", "Cancelled", "Cancelled"]


@pins("flows", 139)
@pytest.mark.parametrize("name", ["", "A name of any length " * 20])
def test_the_name_of_a_state_is_kept_as_it_is(name):
    @flow
    def main() -> Any:
        return Completed(name=name)

    assert main(return_state=True).name == name
    assert flow_states()[-1] == name


# -------------------------------------------------------------------------------------------- retries, subflows


@pins("flows", 63)
def test_the_setting_for_retries_applies_to_flows_that_name_none(monkeypatch):
    monkeypatch.setenv("MICROFLOW_FLOWS_DEFAULT_RETRIES", "1")
    attempts = Witness()

    @flow
    def main() -> str:
        attempts.saw(1)
        if attempts[1] == 1:
            raise ValueError("once")
        return "done"

    assert main() == "done"


@pins("flows", 61)
def test_a_subflow_that_a_task_calls_again_gets_its_own_child_back():
    """Of three siblings one fails and is run again in the re-execution; it does not get another's value."""
    broken = threading.Event()
    broken.set()
    executed = Witness()

    @flow
    def child(number: int) -> int:
        executed.saw(number)
        return 10 * number

    @task
    def calls(number: int) -> int:
        if number == 1 and broken.is_set():
            raise ValueError("not yet")
        return child(number)

    @flow
    def parent() -> list[int]:
        return [future.result() for future in [calls.submit(number) for number in range(3)]]

    assert parent(return_state=True).is_failed()
    broken.clear()
    assert rerun(parent, flow_run_ids("parent")[0], force=True).read_result() == [0, 10, 20]
    assert executed == {0: 1, 1: 1, 2: 1}


def test_states_that_a_subflow_returned_are_handed_back_as_they_were_given():
    """Also when one of them had failed, for which the subflow is FAILED."""

    @task
    def bad() -> None:
        raise ValueError("no")

    @task
    def good() -> int:
        return 1

    @flow
    def child() -> Any:
        return [good(return_state=True), bad(return_state=True)]

    given: list[list[str]] = []

    @flow
    def parent() -> None:
        given.append([state.name for state in child()])
        work()

    @task
    def work() -> None:
        pass

    with death_after(12):
        parent()
    rerun(parent, flow_run_ids("parent")[0])
    assert given == [["Completed", "Failed"]] * 2


# ------------------------------------------------------------------------------------------------------- hooks


@pins("flows", 80)
@both
def test_a_hook_may_be_a_partial_or_have_defaults(colour):
    seen: list[Any] = []

    def hook(flow, flow_run, state, foo=0, **more):
        seen.append((foo, more))

    main = colour.flow(lambda: 1, on_completion=[hook, functools.partial(hook, foo=1, bar=2)])
    colour.run(main)
    assert seen == [(0, {}), (1, {"bar": 2})]


@both
def test_every_kind_of_hook_runs_in_the_context_of_its_run(colour):
    seen: list[tuple[str, bool]] = []

    def hook(flow, flow_run, state):
        context = FlowRunContext.get()
        seen.append((state.name, context is not None and context.flow_run is flow_run))

    kinds = ("on_running", "on_failure", "on_completion", "on_crashed", "on_cancellation")
    hooks = {kind: [hook] for kind in kinds}

    def interrupted():
        raise KeyboardInterrupt

    def failing():
        raise ValueError("no")

    colour.run(colour.flow(failing, **hooks), return_state=True)
    with pytest.raises(KeyboardInterrupt):
        colour.run(colour.flow(interrupted, **hooks))
    assert seen == [("Running", True), ("Failed", True), ("Running", True), ("Crashed", True)]


# ---------------------------------------------------------------------------------------------------- contexts


@pins("flows", 84, 85)
def test_the_run_context_is_that_of_the_innermost_run():
    seen: list[Any] = []

    @flow
    def child() -> None:
        seen.append(type(get_run_context()))

    @task
    def work() -> None:
        seen.append(type(get_run_context()))
        child()
        seen.append(type(get_run_context()))

    @flow
    def parent() -> None:
        work()

    parent()
    assert seen == [TaskRunContext, FlowRunContext, TaskRunContext]


# ---------------------------------------------------------------------------------- suspensions at odd moments

SCRIPT = """
from microflow import flow, task, suspend_flow_run
from tests import test_flow_edges

@task
def work(number):
    test_flow_edges.during_task(number)
    return number

@flow
def twenty():
    return [work(number) for number in range(20)]

@flow
def body():
    return "returned"
"""

during_task: Any = None


@pytest.fixture(name="script")
def script_fixture(tmp_path: Path) -> Any:
    path = tmp_path / "edges_script.py"
    path.write_text(SCRIPT)
    return lambda name: load_entrypoint(f"{path}:{name}")


@pins("flows", 123)
def test_a_run_that_is_suspended_from_outside_stops_between_two_of_its_tasks(script):
    global during_task
    executed: list[int] = []

    def suspend_in_the_seventh(number: int) -> None:
        executed.append(number)
        if number == 6:
            run_id = own_run_id()
            thread = threading.Thread(target=lambda: suspend_flow_run(flow_run_id=run_id, _sync=True))
            thread.start()
            thread.join(PATIENCE)

    during_task = suspend_in_the_seventh
    with pytest.raises(Pause):
        script("twenty")()
    assert executed == list(range(7))
    assert flow_states()[-1] == "Suspended"


@pins("flows", 122)
@pytest.mark.parametrize("moment", ["name", "end"])
def test_a_suspension_that_comes_before_the_body_or_after_it_is_kept(script, monkeypatch, moment):
    """During the making of the run's name, and between the end of the body and the final record."""
    main = script("body")

    def suspend_now() -> None:
        client = current_client()
        (live,) = client.owned.values()
        if live.flow_run.state_type is not StateType.RUNNING:
            live.propose(Running(), force=True)
        suspend_flow_run(flow_run_id=live.run_id, _sync=True)

    if moment == "name":

        def name() -> str:
            suspend_now()
            return "named"

        main = main.with_options(flow_run_name=name)
    else:
        real = BaseFlowRunEngine._leave

        async def leave(self: Any, *args: Any) -> None:
            await real(self, *args)
            suspend_now()

        monkeypatch.setattr(BaseFlowRunEngine, "_leave", leave)
    with pytest.raises(Pause):
        main()
    assert flow_states()[-1] == "Suspended"


# ------------------------------------------------------------------------------------------ a log that refuses


def test_a_body_whose_log_refuses_is_left_for_a_resume_though_the_log_takes_more_at_its_end(monkeypatch):
    """The disk is full for one append, in the body, and has room again: the run is no failure of the flow."""
    full, runs = threading.Event(), []

    @task
    def work(number: int) -> int:
        return number

    @flow
    def main() -> int:
        work(1)
        if not runs:
            full.set()
        runs.append(1)
        try:
            return work(2)
        finally:
            full.clear()

    client = current_client()
    real = client.store.append

    def append(*args: Any, **kwargs: Any) -> Any:
        if full.is_set():
            raise NoSpace("the disk is full")
        return real(*args, **kwargs)

    monkeypatch.setattr(client.store, "append", append)
    with pytest.raises(NoSpace):
        main()
    run_id = flow_run_ids()[0]
    assert flow_states(run_id) == ["Pending", "Running"]
    assert rerun(main, run_id).read_result() == 2


@both
def test_a_run_that_waits_for_its_retry_can_be_cancelled_meanwhile(colour, monkeypatch):
    """Its process works on it, so its hooks have their turn."""
    client, threads, entered = current_client(), [], []

    def look(record: Any) -> None:
        if record.data.get("name") == "AwaitingRetry":
            threads.append(threading.Thread(target=cancel_flow_run, args=(record.run_id,)))
            threads[-1].start()

    hooks = [lambda flow, run, state: entered.append(state.name)]

    @colour.flow(retries=1, retry_delay_seconds=PATIENCE * 10, on_cancellation=hooks)
    def main():
        client.store.bus.subscribe(own_run_id(), look)
        raise ValueError("once")

    with pytest.raises(CancelledRun):
        colour.run(main)
    threads[0].join(PATIENCE)
    assert flow_states()[-3:] == ["AwaitingRetry", "Cancelling", "Cancelled"]
    assert entered == ["Cancelling"]


@both
@pytest.mark.parametrize("submitted", [False, True], ids=["called", "submitted"])
def test_a_task_that_waits_for_its_retry_does_not_keep_its_flow_from_being_cancelled(colour, submitted):
    """The delay is longer than the test's patience."""
    client, threads = current_client(), []

    def look(record: Any) -> None:
        if record.data.get("name") == "AwaitingRetry" and not threads:
            threads.append(threading.Thread(target=cancel_flow_run, args=(record.run_id,)))
            threads[-1].start()

    @colour.task(retries=1, retry_delay_seconds=PATIENCE * 10)
    def again():
        raise ValueError("once")

    @colour.flow
    def main():
        client.store.bus.subscribe_log(own_run_id(), look)
        if submitted:
            again.submit().wait()
        else:
            yield again()

    with pytest.raises(CancelledRun):
        colour.run(main)
    threads[0].join(PATIENCE)
    assert flow_states()[-1] == "Cancelled"
    assert task_states("again") == [["Pending", "Running", "AwaitingRetry", "Cancelled"]]


def test_a_flow_that_is_run_without_parameters_takes_its_defaults():
    @flow
    def main(number: int = 4) -> int:
        return number

    assert run_flow(main) == 4
    assert fold().flow_run.parameters == {"number": 4}


@both
def test_an_error_logger_is_told_once_what_a_run_raised(colour, caplog):
    def failing():
        raise ValueError("no good")

    logger = logging.getLogger("of the program")
    with pytest.raises(ValueError, match="no good"):
        colour.run(lambda: run_flow(colour.flow(failing, name="failing"), error_logger=logger))
    (told,) = [record for record in caplog.records if record.name == "of the program"]
    assert told.levelname == "ERROR"
    assert told.getMessage() == "Flow 'failing' raised ValueError('no good')"


def test_an_error_that_is_no_refusal_of_the_own_log_fails_the_flow():
    @flow
    def main() -> None:
        raise NoSpace("somebody else's disk")

    state = main(return_state=True)
    assert state.is_failed()
    assert isinstance(state.read_result(raise_on_failure=False), NoSpace)


def test_a_failed_state_by_others_wins_over_a_body_that_goes_on():
    @task
    def work() -> int:
        return 1

    @flow
    def main() -> int:
        current_client().set_flow_run_state(own_run_id(), Failed(message="by an operator"), force=True)
        return work()

    state = main(return_state=True)
    assert (state.type, state.message) == (StateType.FAILED, "by an operator")
    with pytest.raises(FailedRun, match="by an operator"):
        main()
    assert fold(flow_run_ids()[0]).owner is None
