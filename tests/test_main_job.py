# SPDX-License-Identifier: Apache-2.0
"""The main job: flows killed with SIGKILL at random moments and resumed, in real processes.

Two facts are proved each time, with witnesses that the killed process itself leaves behind (one O_APPEND write at
the start of each task body): the result is that of an unbroken run, and no task whose end stood in the log before a
kill was executed after it (invariant I13). ``--trials N`` asks for N kills in each test.
"""

from __future__ import annotations

import json
import os
import signal
import sysconfig
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import microflow
from microflow.settings import Settings
from tests.kill_support import (
    chance,
    cli,
    document,
    end,
    ended,
    logs,
    records,
    root_log,
    root_logs,
    size,
    start,
    wait_until,
)

if TYPE_CHECKING:
    import subprocess

    Process = subprocess.Popen[str]

CENSUS = Path(microflow.__file__).parent / "examples" / "census.py"
KILLS_OF_ONE_RUN = 10


# ------------------------------------------------------------------------------------- census, the standard library


class GrowingLog:
    """The completed parses in a log that somebody writes, each line looked at once."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.log: Path | None = None
        self.read = 0
        self.completed = 0

    def reaches(self, count: int) -> bool:
        """Whether so many parses have completed by now."""
        if self.log is None:
            self.log = next(iter(logs(self.home)), None)
        if self.log is not None and self.log.stat().st_size > self.read:
            with self.log.open("rb") as file:
                file.seek(self.read)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self.read += len(whole)
            self.completed += whole.count(b'"type":"COMPLETED"')
        return self.completed > count  # one of them is the search for modules


def parsed_paths(home: Path) -> set[str]:
    """The paths whose parse is on record as completed."""
    (log,) = logs(home)
    results = [record["result"]["json"] for record in records(log) if "json" in record.get("result", ())]
    return {result["path"] for result in results if isinstance(result, dict) and "path" in result}


def never_shown_running(home: Path, run_id: str, which: int) -> None:
    """After a kill the run is shown as CRASHED by `ls` and by `show` (taking turns)."""
    words = ["ls"] if which % 2 else ["show", run_id]
    done = cli(*words, "--json", MICROFLOW_HOME=str(home))
    assert done.returncode == 0, done.stderr
    (report,) = document(done) if which % 2 else [document(done)]
    assert (report["id"], report["state_type"]) == (run_id, "CRASHED")


def killed_census(home: Path, witness: Path, moments: list[int], total: int) -> tuple[dict[str, Any], int]:
    """Run the census, kill it each time that so many parses have completed, resume it; give what it came to.

    Asserted on the way: each kill falls after the first and before the last completion, and no path whose completion
    was logged before a kill is parsed after it.
    """
    place = {"MICROFLOW_HOME": str(home)}
    process = start("run", f"{CENSUS}:census", "--param", f"witness={json.dumps(str(witness))}", "--json", **place)
    growing = GrowingLog(home)
    before: list[tuple[set[str], int]] = []  # at each kill: what was logged, and where the witness stood
    for number, moment in enumerate(moments):
        enough = max(moment, growing.completed + 1)
        assert wait_until(partial(growing.reaches, enough), process), end(process).stderr
        assert end(process, kill=True).returncode == -signal.SIGKILL
        logged = parsed_paths(home)
        assert 0 < len(logged) < total, "the kill fell after the first and before the last completion"
        before.append((logged, witness.stat().st_size))
        run_id = root_log(home).stem
        never_shown_running(home, run_id, number)
        process = start("resume", run_id, "--json", **place)
    done = end(process)
    assert done.returncode == 0, done.stderr
    witnessed = witness.read_bytes()
    for logged, position in before:
        assert logged.isdisjoint(map(os.fsdecode, witnessed[position:].split(b"\n")))
    executions = Counter(witnessed.splitlines())
    assert len(executions) == total
    result: dict[str, Any] = document(done)["result"]
    return result, sum(executions.values()) - total


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_census_of_the_standard_library_survives_ten_kills_at_random_moments(tmp_path, trials):
    """I13: the table is that of an unbroken run, and nothing was parsed again whose completion was logged."""
    random = chance()
    unbroken = cli("run", f"{CENSUS}:census", "--json", MICROFLOW_HOME=str(tmp_path / "unbroken"))
    assert unbroken.returncode == 0, unbroken.stderr
    expected = document(unbroken)["result"]
    total = expected["totals"]["modules"]
    assert total > 300
    assert expected["folder"] == sysconfig.get_path("stdlib")
    for number in range(max(1, trials(KILLS_OF_ONE_RUN) // KILLS_OF_ONE_RUN)):
        moments = sorted(random.sample(range(1, total * 9 // 10), KILLS_OF_ONE_RUN))
        result, again = killed_census(tmp_path / f"home-{number}", tmp_path / f"witness-{number}", moments, total)
        assert result == expected
        # what a kill may cost: the parses that were in the air, at most one for each worker
        assert again <= KILLS_OF_ONE_RUN * Settings().thread_pool_max_workers


# ----------------------------------------------------------------------------------------------- smaller flows

SCRIPT = '''
import os, time
from microflow import flow, task
from microflow.context import TaskRunContext

def executed():
    """Say that this task run is executed, and give the killer a moment; tells how often it was said."""
    line = str(TaskRunContext.get().task_run.id) + "\\n"
    witness = os.open(os.environ["WITNESS"], os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(witness, line.encode())
    said = os.pread(witness, 1 << 20, 0).decode().count(line)
    os.close(witness)
    time.sleep(0.004)
    return said

@task
def add_one(x):
    executed()
    return x + 1

@task
def tree(x):
    """Calls other tasks, two of them alike."""
    executed()
    first = add_one(x)
    second = add_one.submit(first)
    return [first, second.result(), add_one(x), add_one(x)]

@flow
def nested():
    return [tree(1), tree.submit(2).result(), add_one(9)]

@flow
def child(n):
    return sum(add_one.map(range(n)).result())

@flow
def subflows():
    return [child(2), add_one(5), child(3), child(2)]

@task
def fails_when_first_executed():
    if executed() == 1:
        raise ValueError("the first time")
    return "straight on"

@flow
def branches():
    """Which way it goes depends on a failure that would not happen again."""
    try:
        way = fails_when_first_executed()
    except ValueError as error:
        way = "round, for " + str(error)
    return [way, add_one(len(way)), add_one(0)]

@task
async def add_two(x):
    executed()
    return x + 2

@flow
async def asynchronous():
    first = await add_two(1)
    futures = [add_two.submit(first + n) for n in range(4)]
    return [first, [await future for future in futures], add_one(3)]

@task(retries=4)
def third_time_lucky():
    if executed() < 3:
        raise RuntimeError("not yet")
    return "lucky"

@flow
def retried():
    return [add_one(1), third_time_lucky(), add_one(2)]
'''

FLOWS = ["nested", "subflows", "branches", "asynchronous", "retried"]


class Trial:
    """One run of a flow, killed as often as the test likes and resumed until it completes."""

    def __init__(self, folder: Path, target: str) -> None:
        self.home, self.witness = folder / "home", folder / "witness"
        folder.mkdir()
        self.target = target
        self.kills: list[tuple[set[str], int]] = []
        self.environment = {"MICROFLOW_HOME": str(self.home), "WITNESS": str(self.witness)}

    def begin(self) -> Process:
        """Run the flow; resume it when there is something to resume."""
        if not root_logs(self.home):
            return start("run", self.target, "--json", **self.environment)
        return start("resume", root_log(self.home).stem, "--json", **self.environment)

    def kill(self, process: Process, size_of_logs: int) -> bool:
        """Kill the process when the logs have grown to that size; False when it ended before."""
        if not wait_until(lambda: size(self.home) >= size_of_logs, process):
            return False
        process.kill()
        if process.wait() != -signal.SIGKILL:
            return False
        end(process)
        self.kills.append((ended(self.home), len(self.executions())))
        return True

    def executions(self) -> list[str]:
        """The ids of the task runs in the order in which they were executed."""
        return self.witness.read_text().split() if self.witness.exists() else []

    def check(self) -> None:
        """No execution after its end was logged; else once more for each kill at most."""
        executions = self.executions()
        for logged, position in self.kills:
            assert logged.isdisjoint(executions[position:])
        most = 1 + len(self.kills) if "retried" not in self.target else 3 + len(self.kills)
        assert max(Counter(executions).values()) <= most


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "flows.py"
    path.write_text(SCRIPT)
    return path


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_killed_at_random_moments_gives_the_result_of_an_unbroken_run(tmp_path, script, trials, name):
    """I13, for nested tasks, subflows, a caught failure that decides a branch, coroutines and retries."""
    random = chance()
    unbroken = Trial(tmp_path / "unbroken", f"{script}:{name}")
    expected = document(end(unbroken.begin()))["result"]
    unbroken.check()
    whole = size(unbroken.home)
    wanted, kills, number = -(-trials(20) // len(FLOWS)), 0, 0
    while kills < wanted:
        number += 1
        trial = Trial(tmp_path / f"trial-{number}", f"{script}:{name}")
        process = trial.begin()
        while size(trial.home) < whole and trial.kill(process, random.randint(size(trial.home) + 1, whole)):
            kills += 1
            listed = cli("ls", "--json", **trial.environment)
            assert "RUNNING" not in {report["state_type"] for report in document(listed)}
            process = trial.begin()
        done = end(process)
        assert done.returncode == 0, done.stderr
        result = document(done)["result"]
        trial.check()
        if name == "branches" and result != expected:
            straight_on(trial, result)
        else:
            assert result == expected


def straight_on(trial: Trial, result: Any) -> None:
    """The other way is right only if the failure was never logged and its task was therefore executed again."""
    assert result == ["straight on", 12, 1]
    (failing,) = [
        record["run"]
        for record in records(root_log(trial.home))
        if record["k"] == "task" and record["name"].startswith("fails_when")
    ]
    assert trial.executions().count(failing) > 1
    states = {record.get("type") for record in records(root_log(trial.home)) if record.get("run") == failing}
    assert "FAILED" not in states


def test_a_result_that_was_handed_back_is_not_recorded_again(tmp_path, script):
    """What a resumed run hands back costs no line: its release counts them."""
    trial = Trial(tmp_path / "trial", f"{script}:nested")
    process = trial.begin()
    assert wait_until(lambda: bool(logs(trial.home)) and b"tree" in logs(trial.home)[0].read_bytes(), process)
    assert wait_until(lambda: len(ended(trial.home)) >= 2, process)
    end(process, kill=True)
    ended_before = ended(trial.home)
    assert end(trial.begin()).returncode == 0
    written = records(root_log(trial.home))
    ends = Counter(record["run"] for record in written if record.get("type") == "COMPLETED" and "run" in record)
    assert {ends[run] for run in ended_before} == {1}
    (handed_back,) = [record["handed_back"] for record in written if record["k"] == "release"]
    assert 0 < handed_back <= len(ended_before)
