# SPDX-License-Identifier: Apache-2.0
"""Time limits of flows."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from microflow import flow, get_client, pause_flow_run, task
from microflow.exceptions import CrashedRun, FlowRunTimeoutError
from microflow.states import StateType

from .behaviour_support import pins
from .support import PATIENCE, Witness, both, flow_run_ids, flow_states, fold, memory_home

pytestmark = pytest.mark.timeout(60, method="thread")  # the alarm is the flows'


@pytest.fixture(autouse=True)
def home_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    memory_home(monkeypatch)


@pins("flows", 65, 69)
@pytest.mark.parametrize("isasync", [False, True])
def test_a_flow_that_takes_too_long_is_stopped_and_failed_as_timed_out(isasync):
    after: list[int] = []
    if isasync:

        @flow(timeout_seconds=0.1)
        async def main() -> None:
            for _ in range(int(PATIENCE * 100)):
                await asyncio.sleep(0.01)
            after.append(1)

        call = lambda: asyncio.run(main())  # noqa: E731 - the same call in two forms
    else:

        @flow(timeout_seconds=0.1)
        def blocking() -> None:
            time.sleep(PATIENCE)
            after.append(1)

        call = blocking
    with pytest.raises(FlowRunTimeoutError):
        call()
    assert not after
    state = fold().flow_run.state
    assert state is not None
    assert (state.type, state.name) == (StateType.FAILED, "TimedOut")
    assert "exceeded timeout of 0.1 second(s)" in str(state.message)


@pins("flows", 66)
@both
def test_a_flow_that_ends_in_time_is_completed(colour):
    @colour.flow(timeout_seconds=PATIENCE)
    def main():
        return 1

    assert colour.run(main) == 1


@pins("flows", 67)
def test_a_subflow_that_takes_too_long_fails_alone():
    @flow(timeout_seconds=0.05)
    def child() -> None:
        time.sleep(PATIENCE)

    @flow
    def parent() -> str:
        state = child(return_state=True)
        return str(state.message)

    assert "exceeded timeout of 0.05 second(s)" in parent()


def test_a_subflow_that_is_stopped_by_the_limit_of_its_parent_has_crashed():
    @flow
    def child() -> None:
        time.sleep(PATIENCE)

    @flow(timeout_seconds=0.05)
    def parent() -> None:
        child()

    with pytest.raises(FlowRunTimeoutError):
        parent()
    assert flow_states(flow_run_ids("child")[0])[-1] == "Crashed"
    assert flow_states(flow_run_ids("parent")[0])[-1] == "TimedOut"


def test_what_stopped_the_subflow_is_in_its_log(tmp_path, monkeypatch, caplog):
    """Without a warning that it could not be written."""
    monkeypatch.setenv("MICROFLOW_HOME", str(tmp_path / "files"))

    @flow(name="stopped by its caller")  # one name is warned of once
    def child() -> None:
        time.sleep(PATIENCE)

    @flow(timeout_seconds=0.05)
    def parent() -> None:
        child()

    with pytest.raises(FlowRunTimeoutError):
        parent()
    (read,) = get_client(sync_client=True).read_flow_runs(flow_names=["stopped by its caller"])
    assert read.state is not None
    with pytest.raises(CrashedRun, match="the time limit of 0.05 second"):
        read.state.result(_sync=True)
    assert "cannot be kept" not in caplog.text


@pins("flows", 68)
def test_the_time_begins_with_the_body_not_with_what_it_waits_for():
    @task
    def slow() -> None:
        time.sleep(0.2)

    @flow(timeout_seconds=0.15)
    def child() -> str:
        return "in time"

    @flow
    def parent() -> str:
        return child(wait_for=[slow.submit()])

    assert parent() == "in time"


@pins("flows", 70)
@both
def test_each_attempt_has_the_whole_time(colour):
    attempts = Witness()

    @colour.flow(timeout_seconds=0.5, retries=2)
    def main():
        attempts.saw(1)
        if attempts[1] < 3:
            time.sleep(0.2)
            raise ValueError("once more")
        time.sleep(0.2)
        return "done"

    assert colour.run(main) == "done"
    assert attempts == {1: 3}


def test_a_timeout_is_retried_like_any_failure():
    attempts = Witness()

    @flow(timeout_seconds=0.05, retries=1)
    def main() -> str:
        attempts.saw(1)
        if attempts[1] == 1:
            time.sleep(PATIENCE)
        return "done"

    assert main() == "done"
    assert flow_states() == ["Pending", "Running", "AwaitingRetry", "Running", "Completed"]


def test_the_limit_covers_the_wait_for_the_futures_that_are_returned():
    release = threading.Event()

    @task
    def slow() -> None:
        release.wait(1)

    @flow(timeout_seconds=0.05)
    def main() -> object:
        return slow.submit()

    with pytest.raises(FlowRunTimeoutError):
        main()
    release.set()


@both
def test_a_pause_is_ended_by_the_limit_of_its_flow(colour):
    @colour.flow(timeout_seconds=0.1)
    def main():
        yield pause_flow_run(timeout=PATIENCE)

    with pytest.raises(FlowRunTimeoutError):
        colour.run(main)
    assert flow_states() == ["Pending", "Running", "Paused", "Running", "TimedOut"]


@both
def test_a_timeout_error_of_the_users_is_named_so_and_says_what_it_is(colour):
    @colour.flow
    def main():
        raise TimeoutError("the server is slow")

    with pytest.raises(TimeoutError, match="the server is slow"):
        colour.run(main)
    state = fold().flow_run.state
    assert state is not None
    assert state.name == "TimedOut"
    assert "the server is slow" in str(state.message)


def test_on_failure_hooks_run_after_a_timeout():
    hooks = []

    @flow(timeout_seconds=0.05, on_failure=[lambda *args: hooks.append(args[2].name)])
    def main() -> None:
        time.sleep(PATIENCE)

    main(return_state=True)
    assert hooks == ["TimedOut"]
