# SPDX-License-Identifier: Apache-2.0
"""Resuming and cancelling from another process, with real processes, kills and signals; and a soak."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from microflow import flow, pause_flow_run, resume_flow_run, suspend_flow_run
from microflow.client.orchestration import current_client
from microflow.exceptions import FlowPauseTimeout, NotPausedError
from microflow.states import StateType
from tests.kill_support import PATIENCE, cli, document, end, environment, logs, records, start, wait_until

from .behaviour_support import pins
from .pause_support import when

if TYPE_CHECKING:
    import subprocess

SCRIPT = """
import os, time
from microflow import flow, task, pause_flow_run, suspend_flow_run
from microflow.exceptions import FlowPauseTimeout

def witness(line):
    with open(os.environ["WITNESS"], "a") as file:
        file.write(f"{line}\\n")

@task
def work(number):
    witness(f"work {number}")
    return number

@flow(on_cancellation=[lambda *args: witness("hook")])
def pauses(timeout: float = 60):
    first = work(1)
    pause_flow_run(timeout=timeout)
    witness(f"resumed {time.time()}")
    return first + work(2)

@flow
def asks():
    first = work(1)
    witness("asking")
    pause_flow_run(timeout=60)
    return first + work(2)

@flow
def calls_a_pausing_child():
    return asks()

@flow
def suspends():
    first = work(1)
    suspend_flow_run()
    return first + work(2)

@flow(on_crashed=[lambda *args: witness("crashed hook")], on_cancellation=[lambda *args: witness("hook")])
def terminated():
    inner()

@flow(on_crashed=[lambda *args: witness("inner crashed hook")], on_cancellation=[lambda *args: witness("inner hook")])
def inner():
    witness("inside")
    time.sleep(60)

@flow(on_crashed=[lambda *args: witness("crashed hook")], on_cancellation=[lambda *args: witness("hook")])
async def terminated_coroutine():
    import asyncio
    witness("inside")
    await asyncio.sleep(60)

@flow
def busy():
    for number in range(100000):
        work(number)
        time.sleep(0.001)

@flow
def waits_in_a_task():
    return pausing_task.submit().result()

@task
def pausing_task():
    pause_flow_run(timeout=60)
    return 5
"""


class Place:
    """A folder with the script, a home and a witness."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.home = home
        self.script = folder / "flows.py"
        self.script.write_text(SCRIPT)
        self.witness_file = folder / "witness"
        self.witness_file.write_text("")

    def start(self, name: str, *more: object) -> subprocess.Popen[str]:
        return start("run", f"{self.script}:{name}", *more, "--json", WITNESS=str(self.witness_file))

    def start_again(self, run_id: str) -> subprocess.Popen[str]:
        return start("resume", run_id, "--json", WITNESS=str(self.witness_file))

    def cli(self, *words: object) -> subprocess.CompletedProcess[str]:
        return cli(*words, WITNESS=str(self.witness_file))

    def witness(self) -> list[str]:
        return self.witness_file.read_text().splitlines()

    def run_id(self, process: subprocess.Popen[str], state: str) -> str:
        """The one run, once its recorded state has this type."""

        def reached() -> bool:
            read = [each for log in logs(self.home) for each in records(log)]
            states = [each["type"] for each in read if each["k"] == "state" and "run" not in each]
            return bool(states) and states[-1] == state

        assert wait_until(reached, process), process.communicate()
        return logs(self.home)[0].stem

    def states(self, run_id: str) -> list[str]:
        return [state.name for state in current_client().read_flow_run_states(run_id)]


@pytest.fixture(name="place")
def place_fixture(tmp_path: Path, private_home: Path) -> Place:
    return Place(tmp_path, private_home)


# ------------------------------------------------------------------------------------------------ resume


@pins("flows", 117)
@pytest.mark.parametrize("name", ["pauses", "waits_in_a_task"])
def test_a_resume_by_another_process_reaches_the_pauser(place, name):
    process = place.start(name)
    run_id = place.run_id(process, "PAUSED")
    resume_flow_run(run_id, _sync=True)
    done = end(process)
    assert done.returncode == 0, done.stderr
    assert place.states(run_id) == ["Pending", "Running", "Paused", "Running", "Completed"]


def test_the_command_line_resumes_a_paused_run_where_it_is(place):
    process = place.start("pauses")
    run_id = place.run_id(process, "PAUSED")
    done = place.cli("resume", run_id, "--json")
    assert (done.returncode, document(done)["state_name"]) == (0, "Running")
    assert document(end(process))["result"] == 3
    assert [line.split()[0] for line in place.witness()] == ["work", "resumed", "work"]


def test_of_many_processes_that_resume_one_run_exactly_one_wins(place):
    process = place.start("pauses")
    run_id = place.run_id(process, "PAUSED")
    racers = [start("resume", run_id, "--json") for _ in range(4)]
    statuses = [end(racer).returncode for racer in racers]
    assert end(process).returncode == 0
    assert place.states(run_id).count("Running") == 2
    assert statuses.count(0) >= 1


def test_a_paused_run_whose_process_was_killed_is_resumed_by_another(place):
    """The pause counts as passed, what was done is handed back, and the answer to it is the resume."""
    process = place.start("pauses")
    run_id = place.run_id(process, "PAUSED")
    end(process, kill=True)
    done = place.cli("resume", run_id, "--json")
    assert (done.returncode, document(done)["result"]) == (0, 3)
    assert [line.split()[0] for line in place.witness()] == ["work", "resumed", "work"]
    assert place.states(run_id) == ["Pending", "Running", "Paused", "Resuming", "Running", "Completed"]


def test_a_suspended_run_is_resumed_and_run_by_the_command_line(place):
    process = place.start("suspends")
    done = end(process)
    assert done.returncode == 3
    run_id = document(done)["id"]
    again = place.cli("resume", run_id, "--json")
    assert (again.returncode, document(again)["result"]) == (0, 3)
    assert place.witness() == ["work 1", "work 2"]


def test_a_suspended_run_may_be_only_marked_as_resumed(place):
    run_id = document(end(place.start("suspends")))["id"]
    done = place.cli("resume", run_id, "--no-run", "--json")
    assert (done.returncode, document(done)["state_name"]) == (0, "Resuming")
    assert place.witness() == ["work 1"]
    again = place.cli("resume", run_id, "--json")
    assert (again.returncode, document(again)["result"]) == (0, 3)


def test_a_pause_that_expired_after_its_process_was_killed_fails_the_run(place):
    process = place.start("pauses", "--param", "timeout=0.5")
    run_id = place.run_id(process, "PAUSED")
    end(process, kill=True)
    paused = current_client().fold(run_id).states[-1].state_details.pause_timeout
    assert paused is not None
    while time.time() <= paused.timestamp():
        time.sleep(0.02)
    assert current_client().read_flow_run(run_id).state_type is StateType.FAILED
    with pytest.raises(FlowPauseTimeout):
        resume_flow_run(run_id, _sync=True)
    assert place.states(run_id)[-1] == "Failed"


def test_what_cannot_be_resumed_is_told_on_one_line(place):
    run_id = document(end(place.start("suspends")))["id"]
    for words in (["--input", "{"], ["--input", "[1]"]):
        done = place.cli("resume", run_id, *words)
        assert done.returncode == 2
        assert "--input" in done.stderr.splitlines()[-1]
    assert place.states(run_id)[-1] == "Suspended"
    place.cli("cancel", run_id)
    assert place.states(run_id)[-1] == "Cancelled"
    with pytest.raises(NotPausedError):
        resume_flow_run(run_id, _sync=True)


def test_the_example_of_the_readme_pauses_then_leaves_then_ends(place):
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    place.script.write_text(readme.partition("## Pause and resume")[2].partition("```python\n")[2].partition("```")[0])
    process = place.start("deploy", "--param", 'version="1.2"')
    run_id = place.run_id(process, "PAUSED")
    assert place.cli("resume", run_id).returncode == 0
    assert end(process).returncode == 3
    done = place.cli("resume", run_id, "--json")
    assert (done.returncode, document(done)["result"]) == (0, "1.2")


@pytest.mark.parametrize("how", ["killed", "suspended"])
def test_a_subflow_that_was_paused_when_its_process_left_pauses_again(place, how):
    """Its parent is run again, and the child asks anew: nobody had answered."""
    process = place.start("calls_a_pausing_child")
    assert wait_until(lambda: "asking" in place.witness(), process)
    root, child = (log.stem for log in logs(place.home))
    place.run_id(process, "PAUSED")
    if how == "killed":
        end(process, kill=True)
    else:
        suspend_flow_run(flow_run_id=root, _sync=True)
        assert end(process).returncode == 3
    again = place.start_again(root)
    assert wait_until(lambda: place.states(child)[-1] == "Paused" and place.witness().count("asking") == 2, again)
    resume_flow_run(child, _sync=True)
    done = end(again)
    assert (done.returncode, document(done)["result"]) == (0, 3)
    assert place.witness() == ["work 1", "asking", "asking", "work 2"]


# ------------------------------------------------------------------------------------------------ cancel


def test_a_busy_run_notices_a_cancellation_at_its_next_task_call(place):
    process = place.start("busy")
    run_id = place.run_id(process, "RUNNING")
    assert wait_until(lambda: len(place.witness()) > 3, process)
    done = place.cli("cancel", run_id, "--json")
    assert done.returncode == 0
    assert document(done)["state_name"] in ("Cancelling", "Cancelled")
    ended = end(process)
    assert (ended.returncode, document(ended)["state_name"]) == (1, "Cancelled")
    assert place.states(run_id)[-2:] == ["Cancelling", "Cancelled"]
    again = place.cli("cancel", run_id)
    assert again.returncode == 1


def test_a_paused_run_notices_a_cancellation_at_once(place):
    process = place.start("pauses")
    run_id = place.run_id(process, "PAUSED")
    place.cli("cancel", run_id)
    ended = end(process)
    assert document(ended)["state_name"] == "Cancelled"
    assert place.witness() == ["work 1", "hook"]


def test_what_no_process_runs_is_cancelled_at_once(place):
    process = place.start("busy")
    run_id = place.run_id(process, "RUNNING")
    end(process, kill=True)
    done = place.cli("cancel", run_id, "--json")
    assert (done.returncode, document(done)["state_name"]) == (0, "Cancelled")


# ----------------------------------------------------------------------------------------------- SIGTERM


@pins("flows", 74)
@pytest.mark.parametrize("name", ["terminated", "terminated_coroutine"])
@pytest.mark.parametrize("asked", [False, True], ids=["no cancellation asked for", "cancellation asked for"])
def test_a_termination_signal_ends_the_runs_on_record_and_then_the_process(place, name, asked):
    """CRASHED, or CANCELLED when that was asked for before, children first; the process ends by the signal."""
    process = place.start(name)
    assert wait_until(lambda: "inside" in place.witness(), process)
    root = next(log for log in logs(place.home) if "parent_flow" not in records(log)[0]).stem
    if asked:
        assert place.cli("cancel", root).returncode == 0
    process.terminate()
    assert end(process).returncode == -signal.SIGTERM
    assert place.states(root)[-1] == ("Cancelled" if asked else "Crashed")
    hooks = ["hook"] if asked else ["crashed hook"]
    if name == "terminated":
        hooks = [f"inner {hooks[0]}", *hooks]
    assert place.witness() == ["inside", *hooks]


@pytest.mark.parametrize("name", ["terminated", "terminated_coroutine"])
def test_an_interrupt_ends_the_runs_on_record(place, name):
    process = place.start(name)
    assert wait_until(lambda: "inside" in place.witness(), process)
    process.send_signal(signal.SIGINT)
    assert end(process).returncode == 1
    root = next(log for log in logs(place.home) if "parent_flow" not in records(log)[0]).stem
    assert place.states(root)[-1] == "Crashed"


# ------------------------------------------------------------------------------------------- how soon, and a soak


def test_a_resume_is_felt_within_milliseconds_in_this_process():
    """The budget is 1 ms for the median; what is asked for here leaves room for a loaded machine."""
    delays: list[float] = []
    resumed_at: list[float] = []

    def resume(run_id: str) -> None:
        time.sleep(0.002)  # the pauser is to wait already
        resumed_at.append(time.perf_counter())
        resume_flow_run(run_id, _sync=True)

    @flow
    def main() -> None:
        with when("PAUSED", resume, times=25):
            for _ in range(25):
                pause_flow_run(timeout=PATIENCE)
                delays.append(time.perf_counter() - resumed_at[-1])

    main()
    assert sorted(delays)[12] < 0.02


@pytest.mark.slow
def test_a_thousand_pauses_leave_no_thread_file_or_memory_behind(tmp_path):
    """A soak: runs that pause and are resumed, one after the other."""

    @flow
    def main() -> int:
        with when("PAUSED", lambda run_id: resume_flow_run(run_id, _sync=True)):
            pause_flow_run(timeout=PATIENCE)
        return 1

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

    def rounds(many: int) -> None:
        for _ in range(many):
            assert main() == 1
        gc.collect()

    rounds(100)  # what is made once is there
    threads, files = threading.active_count(), descriptors()
    tracemalloc.start()
    try:
        rounds(100)
        before = tracemalloc.get_traced_memory()[0]
        rounds(800)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert threading.active_count() <= threads
    assert descriptors() <= files
    assert grown < 800 * 100, f"{grown} bytes more after 800 runs"


def test_the_script_of_these_tests_is_found_by_children():
    """The control: the environment of the processes reaches the package."""
    assert "PYTHONPATH" in environment()
