# SPDX-License-Identifier: Apache-2.0
"""How a run leaves before an invocation's time is up, in this process."""

from __future__ import annotations

import signal
import threading
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from microflow import flow, get_client, task
from microflow.ext.aws_lambda import lambda_handler
from microflow.ext.lambda_deadline import Deadline, TimeLeft
from microflow.flow_runs import pause_flow_run
from microflow.settings import temporary_settings
from microflow.states import Pending, Scheduled
from tests.lambda_support import Context

SOON = 0.3  # seconds until the deadline of an invocation that is to meet it


def resume(run_id: str, **more: Any) -> dict[str, Any]:
    return {"microflow": {"action": "resume", "flow_run_id": run_id, **more}}


attempts: list[int] = []
entered, leave = threading.Event(), threading.Event()


@flow(retries=1, retry_delay_seconds=30)
def retried() -> int:
    attempts.append(1)
    if len(attempts) == 1:
        raise ValueError("once")
    return len(attempts)


@flow(retries=1, retry_delay_seconds=30)
async def retried_async() -> int:
    return retried.fn()


@flow
def pauses() -> str:
    pause_flow_run(timeout=30)
    return "resumed"


@flow
def quick() -> int:
    return 5


@task
def step(number: int) -> int:
    time.sleep(0.02)
    return number


@flow
def many(n: int = 500) -> int:
    return sum(step(number) for number in range(n))


@task
def held() -> None:
    entered.set()
    assert leave.wait(60)


@flow
def holds() -> str:
    held()
    held()
    return "done"


@pytest.fixture(autouse=True)
def fresh() -> None:
    attempts.clear()
    entered.clear()
    leave.clear()


@pytest.mark.parametrize("handled", [retried, retried_async])
def test_the_delay_before_a_flow_s_retry_is_left_to_the_next_invocation(handled):
    answer = lambda_handler(handled, margin=0)({}, Context(SOON))
    assert (answer["status"], len(attempts)) == ("scheduled", 1)
    assert answer["continue"] == resume(answer["flow_run_id"], hops=1)
    assert "AwaitingRetry" in answer["state"]
    again = lambda_handler(handled, margin=0)(answer["continue"], Context(SOON))
    assert (again["status"], again["continue"]["microflow"]["hops"]) == ("scheduled", 2)
    assert len(attempts) == 1


def test_a_run_that_is_not_due_before_the_deadline_is_left_as_it_is():
    client = get_client(sync_client=True)
    due = datetime.now(timezone.utc) + timedelta(seconds=30)
    made = client.create_flow_run(quick, state=Scheduled(scheduled_time=due))
    answer = lambda_handler(quick, margin=0)(resume(str(made.id)), Context(SOON))
    assert (answer["status"], answer["continue"]) == ("scheduled", resume(str(made.id), hops=1))
    assert client.fold(str(made.id)).owner is None


def test_a_pause_is_left_to_whoever_resumes_it_and_nothing_else_goes_on_with_it():
    handler = lambda_handler(pauses, margin=0)
    answer = handler({}, Context(SOON))
    assert answer["status"] == "paused"
    assert "continue" not in answer
    assert handler(resume(answer["flow_run_id"]), Context(20))["result"] == "resumed"


def test_a_home_that_a_setting_of_the_calling_thread_names_is_the_one_that_is_asked(tmp_path):
    with temporary_settings(home=str(tmp_path / "other")):
        answer = lambda_handler(many, margin=0)({}, Context(SOON))
    assert answer["status"] == "suspended"


def test_who_waits_for_a_run_that_is_about_to_leave_waits_for_its_own_deadline_and_no_longer():
    """It says how to go on, and has not let go on what another invocation still has."""
    handler = lambda_handler(holds, margin=0, key=lambda event, context: "one")
    answers: list[Any] = []
    first = threading.Thread(target=lambda: answers.append(handler({}, Context(SOON))))
    first.start()
    try:
        assert entered.wait(30)
        client = get_client(sync_client=True)
        (run,) = client.read_flow_runs()
        while not client.read_flow_run(run.id).state.is_suspended():
            time.sleep(0.01)
        began = time.monotonic()
        for event in ({}, resume(str(run.id), hops=3)):
            answers.append(handler(event, Context(SOON)))
        assert time.monotonic() - began < 30, "a process that was suspended is waited for 60 s elsewhere"
        assert [answer["status"] for answer in answers] == ["suspended", "suspended"]
        assert [answer["continue"]["microflow"]["hops"] for answer in answers] == [1, 4]
    finally:
        leave.set()
        first.join()
    assert answers[2]["status"] == "suspended", "the run of the first invocation was not disturbed"
    assert handler(answers[2]["continue"], Context(20))["result"] == "done"


def test_a_second_sigterm_within_the_first_takes_no_lock_again():
    """Broken if the handler set its event twice: the lock of the first time stands in the way."""
    client = get_client(sync_client=True)
    live = client.start(client.new_flow_run(quick), quick, {}, Pending(), own=True)
    calls = []

    class Wake(threading.Event):
        def set(self) -> None:
            calls.append(1)
            if len(calls) == 1:
                signal.raise_signal(signal.SIGTERM)
            super().set()

    deadline = Deadline(live, client, TimeLeft(None, None))
    deadline._wake = Wake()
    with deadline:
        signal.raise_signal(signal.SIGTERM)
        assert len(calls) == 1
    client.let_go(live)


@flow
def ends_its_process() -> None:
    signal.raise_signal(signal.SIGTERM)
    raise SystemExit(3)


def test_the_program_s_own_handler_of_sigterm_is_called_though_the_flow_raises_out():
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    try:
        with pytest.raises(SystemExit):
            lambda_handler(ends_its_process)({}, None)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told == [signal.SIGTERM]
