# SPDX-License-Identifier: Apache-2.0
"""Waiting for runs of this process and of others, also of one that is killed meanwhile."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from microflow import flow, get_client
from microflow.client.orchestration import current_client
from microflow.exceptions import FlowRunWaitTimeout, FlowWaitTimeout, ObjectNotFound
from microflow.flow_engine import run_flow
from microflow.flow_runs import wait_for_flow_run
from microflow.states import Failed, Paused, Running, StateType
from tests.kill_support import end, environment, wait_until

from .behaviour_support import pins
from .pause_support import own_run_id
from .support import PATIENCE, flow_run_ids, memory_home

if TYPE_CHECKING:
    from pathlib import Path

    from microflow.client.objects import FlowRun


def wait(run_id: str, **options: Any) -> FlowRun:
    return asyncio.run(wait_for_flow_run(run_id, **options))


@flow
def plain(value: int = 1) -> int:
    return value


@flow
def failing() -> None:
    raise ValueError("no good")


@pins("flows", 129)
@pytest.mark.parametrize("timeout", [None, 0, 10])
def test_a_run_that_has_ended_is_given_at_once(timeout, monkeypatch):
    memory_home(monkeypatch)
    plain()
    assert wait(flow_run_ids()[0], timeout=timeout).state_type is StateType.COMPLETED


@pins("flows", 130)
def test_a_failed_run_is_given_not_raised(monkeypatch):
    memory_home(monkeypatch)
    failing(return_state=True)
    run = wait(flow_run_ids()[0])
    assert run.state is not None
    assert run.state.is_failed()


@pins("flows", 129)
def test_a_wait_that_takes_too_long_raises_under_both_names(monkeypatch):
    memory_home(monkeypatch)
    run = get_client(sync_client=True).create_flow_run(plain)
    for name in (FlowRunWaitTimeout, FlowWaitTimeout, TimeoutError):
        with pytest.raises(name, match=f"{run.id} did not end within 0 seconds"):
            wait(str(run.id), timeout=0)


def test_an_unknown_run_is_not_waited_for(monkeypatch):
    memory_home(monkeypatch)
    with pytest.raises(ObjectNotFound):
        wait("01a1fc5b-c97b-7c32-bcb6-906012357f80")


@pytest.mark.parametrize("memory", [True, False], ids=["memory", "files"])
def test_a_run_that_this_process_runs_meanwhile_is_waited_for(memory, monkeypatch):
    if memory:
        memory_home(monkeypatch)
    run = current_client().create_flow_run(plain)

    async def main() -> FlowRun:
        waiting = asyncio.ensure_future(wait_for_flow_run(run.id, timeout=PATIENCE))
        await asyncio.sleep(0)
        await asyncio.to_thread(run_flow, plain, run)
        return await waiting

    assert asyncio.run(main()).state_type is StateType.COMPLETED


def test_many_runs_are_waited_for_at_once(monkeypatch):
    """The page's second example."""
    memory_home(monkeypatch)
    client = current_client()
    runs = [client.create_flow_run(plain, parameters={"value": number}) for number in range(10)]

    async def main() -> list[FlowRun]:
        waiting = asyncio.gather(*(wait_for_flow_run(run.id, timeout=PATIENCE) for run in runs))
        await asyncio.sleep(0)
        for run in runs:
            await asyncio.to_thread(run_flow, plain, run)
        return await waiting

    assert [run.state_type for run in asyncio.run(main())] == [StateType.COMPLETED] * 10


def test_the_states_are_logged_by_their_names(monkeypatch, caplog):
    memory_home(monkeypatch)
    client = current_client()
    run = client.create_flow_run(plain)
    client.set_flow_run_state(run.id, Running(), force=True)
    client.set_flow_run_state(run.id, Paused(), force=True)
    client.set_flow_run_state(run.id, Failed(name="TimedOut"), force=True)
    with caplog.at_level(logging.INFO, "microflow"):
        wait(str(run.id), log_states=True)
    said = [record.getMessage().rpartition(" is in state ")[2] for record in caplog.records]
    assert [each.partition("(")[0] for each in said] == ["Scheduled", "Running", "Paused", "TimedOut"]


def test_a_paused_run_is_waited_for(monkeypatch):
    memory_home(monkeypatch)
    run = current_client().create_flow_run(plain)
    current_client().set_flow_run_state(run.id, Paused(), force=True)
    with pytest.raises(FlowRunWaitTimeout, match="Paused"):
        wait(str(run.id), timeout=0.05)


def test_waiting_from_inside_of_a_run_takes_nothing_from_it(monkeypatch):
    memory_home(monkeypatch)
    ids: list[str] = []

    @flow
    def waited_for() -> None:
        ids.append(own_run_id())
        waiter = threading.Thread(target=lambda: ids.append(wait(ids[0], timeout=PATIENCE).name))
        waiter.start()
        threads.append(waiter)

    threads: list[threading.Thread] = []
    waited_for()
    threads[0].join(PATIENCE)
    assert len(ids) == 2


SCRIPT = """
import os, time
from microflow import flow

@flow
def sleeps(seconds: float = 60):
    open(os.environ["WITNESS"], "w").close()
    time.sleep(seconds)
"""


@pytest.mark.parametrize("kill", [False, True], ids=["ends", "is killed"])
def test_a_run_of_another_process_is_waited_for(kill, tmp_path: Path):
    """A killed one is CRASHED for who waits, though nobody could write that."""
    import subprocess

    script, witness = tmp_path / "sleeping.py", tmp_path / "witness"
    script.write_text(SCRIPT)
    seconds = 60 if kill else 0.3
    process = subprocess.Popen(
        [sys.executable, "-m", "microflow", "run", f"{script}:sleeps", "--param", f"seconds={seconds}"],
        env=environment(WITNESS=str(witness)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert wait_until(witness.exists, process)
    (run_id,) = flow_run_ids()

    async def main() -> FlowRun:
        waiting = asyncio.ensure_future(wait_for_flow_run(run_id, timeout=PATIENCE))
        await asyncio.sleep(0.05)
        if kill:
            process.kill()
        return await waiting

    run = asyncio.run(main())
    end(process)
    assert run.state_type is (StateType.CRASHED if kill else StateType.COMPLETED)
