# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C while submitted runs go on: the program returns within a second, and each run has its end on record."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from microflow import flow, task
from microflow.client.orchestration import current_client
from microflow.futures import ConcurrentFuture
from microflow.task_runners import ThreadPoolTaskRunner
from tests.support import PATIENCE, Colour, both, fold, memory_home, task_states

ROOT = Path(__file__).resolve().parent.parent


@both
@pytest.mark.parametrize("interrupted", [True, False], ids=["interrupt", "leaving"])
def test_a_retry_that_waits_for_its_time_is_not_waited_for(monkeypatch, colour: Colour, interrupted):
    """Also when the flow simply returns."""
    memory_home(monkeypatch)

    @colour.task(retries=2, retry_delay_seconds=3600)
    def again():
        raise ValueError

    @flow
    def body():
        future = again.submit()
        while future_state(future) != "AwaitingRetry":
            time.sleep(0.001)
        if interrupted:
            raise KeyboardInterrupt

    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            body()
    else:
        body()
    assert task_states("again") == [["Pending", "Running", "AwaitingRetry", "Cancelled"]]


def future_state(future: Any) -> str | None:
    return fold().task_run(str(future.task_run_id)).state_name


def test_a_coroutine_is_interrupted(monkeypatch):
    memory_home(monkeypatch)
    begun = threading.Event()

    @task
    async def forever():
        import asyncio

        begun.set()
        await asyncio.sleep(3600)

    @flow
    def body():
        forever.submit()
        assert begun.wait(PATIENCE)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        body()
    assert task_states("forever") == [["Pending", "Running", "Crashed"]]


def test_a_function_that_cannot_be_interrupted_is_left_behind_and_its_late_end_changes_nothing(monkeypatch, caplog):
    memory_home(monkeypatch)
    begun, release, futures = threading.Event(), threading.Event(), list[ConcurrentFuture[Any]]()

    @task(retries=1)
    def stubborn(x):
        begun.set()
        release.wait(PATIENCE)
        raise ValueError

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=1))
    def body():
        futures.extend([stubborn.submit(1), stubborn.submit(2)])
        assert begun.wait(PATIENCE)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        body()
    assert [future.state.name for future in futures] == ["Crashed", "Cancelled"]
    assert "was still running when its runner was interrupted" in caplog.text
    recorded = current_client().store.read(fold().run_id).position
    release.set()
    for thread in threading.enumerate():
        if thread.name.startswith("microflow-"):
            thread.join(PATIENCE)
    assert current_client().store.read(fold().run_id).position == recorded
    assert task_states("stubborn") == [["Pending", "Running", "Crashed"], ["Pending", "Cancelled"]]


PROGRAM = """
import sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from microflow import flow, task
from microflow.task_runners import ExecutorTaskRunner, ProcessPoolTaskRunner, ThreadPoolTaskRunner

@task
def blocked():
    print("running", flush=True)
    time.sleep(3600)

if __name__ == "__main__":
    @flow(task_runner={runner})
    def body():
        blocked.submit().result()

    body()
"""
OWN_POOL = "ExecutorTaskRunner(lambda: ProcessPoolExecutor(2, mp_context=get_context({!r})), 2)"


OURS = ["ThreadPoolTaskRunner()", "ProcessPoolTaskRunner(2)", *map(OWN_POOL.format, ("fork", "forkserver"))]


@pytest.mark.parametrize(
    ("runner", "to"), [(runner, to) for runner in OURS for to in ("the program", "all its processes")]
)
def test_ctrl_c_ends_a_program_whose_tasks_cannot_be_interrupted(runner, to, tmp_path):
    """A terminal sends it to all processes."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.format(runner=runner))
    pipe = subprocess.PIPE
    program = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=pipe,
        stderr=pipe,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == b"running\n"
        (os.kill if to == "the program" else os.killpg)(program.pid, signal.SIGINT)
        _, said = program.communicate(timeout=PATIENCE)
    finally:
        program.kill()
        program.communicate()
    assert b"KeyboardInterrupt" in said
    client = current_client()
    (flow_run,) = client.read_flow_runs()
    (task_run,) = client.read_task_runs(flow_run_id=flow_run.id)
    assert (flow_run.state_name, task_run.state_name) == ("Crashed", "Crashed")
    assert client.fold(str(flow_run.id)).owner is None
