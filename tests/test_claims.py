# SPDX-License-Identifier: Apache-2.0
"""Claims between whole processes: one winner, quick losers, and a zombie that cannot say anything any more (I12).

Task bodies write one line to a witness file and then wait for a *gate* (a file that the test makes), so that a round
lasts as long as the test wants and no longer.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.behaviour_support import pins
from tests.kill_support import (
    ROOT,
    cli,
    digest,
    document,
    end,
    environment,
    logs,
    records,
    start,
    wait_until,
)

if TYPE_CHECKING:
    from pathlib import Path

PROCESSES = 8
LOSERS_TIME = 2.0  # seconds in which all who come too late must have said so
HALF_SECOND_ROUNDS = 3

COMPLETED, ELSEWHERE, FENCED = 0, 6, 8

SCRIPT = '''
import os, time
from microflow import flow, task

@task
def step(n):
    witness = os.open(os.environ["WITNESS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(witness, f"{n}\\n".encode())
    os.close(witness)
    time.sleep(float(os.environ.get("SECONDS", "0")))
    while "GATES" in os.environ and not os.path.exists(os.path.join(os.environ["GATES"], str(n))):
        time.sleep(0.005)
    return n

@flow
def three_steps():
    return [step(0), step(1), step(2)]
'''


class Place:
    """A home with one run of ``three_steps``, its witness file and its gates."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home, self.witness, self.gates = folder / "home", folder / "witness", folder / "gates"
        self.gates.mkdir(parents=True)
        self.environment = {
            "MICROFLOW_HOME": str(self.home),
            "WITNESS": str(self.witness),
            "GATES": str(self.gates),
        }

    @property
    def run_id(self) -> str:
        (log,) = logs(self.home)
        return log.stem

    def open_gates(self, *numbers: int) -> None:
        for number in numbers:
            (self.gates / str(number)).touch()

    def witnessed(self) -> list[str]:
        return self.witness.read_text().split() if self.witness.exists() else []

    def claims(self) -> int:
        """How many claims were accepted so far."""
        (log,) = logs(self.home)
        return sum(record["k"] == "claim" for record in records(log))

    def begin(self, script: Path) -> subprocess.Popen[str]:
        """Start the flow; it is in the body of step 1 when this returns."""
        self.open_gates(0)
        process = start("run", f"{script}:three_steps", "--json", **self.environment)
        assert wait_until(lambda: self.witnessed() == ["0", "1"], process)
        return process

    def copy(self, folder: Path) -> Place:
        """The same home elsewhere, with a witness and gates of its own."""
        place = Place(folder)
        shutil.copytree(self.home, place.home)
        place.open_gates(0)
        return place


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "steps.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture
def orphan(tmp_path, script):
    """A run whose process was killed in the body of step 1; step 0 is on record as completed."""
    place = Place(tmp_path / "orphan")
    end(place.begin(script), kill=True)
    return place


class Race:
    """So many processes that resume one run as soon as :meth:`release` opens the barrier."""

    def __init__(self, place: Place, **changes: str) -> None:
        ready, says_ready = os.pipe()
        waits, self._barrier = os.pipe()
        program = [sys.executable, "-m", "tests.kill_support", str(says_ready), str(waits)]
        self.processes = [
            subprocess.Popen(
                [*program, "resume", place.run_id, "--json"],
                cwd=ROOT,
                env=environment(**place.environment, **changes),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=(says_ready, waits),
            )
            for _ in range(PROCESSES)
        ]
        os.close(says_ready)
        os.close(waits)
        arrived = b""
        while len(arrived) < PROCESSES:
            more = os.read(ready, PROCESSES)
            assert more, "a process died before the barrier"
            arrived += more
        os.close(ready)

    def release(self) -> None:
        """Let all of them go at once."""
        os.close(self._barrier)

    def losers(self) -> list[subprocess.Popen[str]]:
        """Those that ended, once only one is left; they have :data:`LOSERS_TIME` for it."""
        deadline = time.monotonic() + LOSERS_TIME
        while sum(process.poll() is None for process in self.processes) > 1:
            assert time.monotonic() < deadline, f"after {LOSERS_TIME} s several processes still run"
            time.sleep(0.002)
        return [process for process in self.processes if process.poll() is not None]


def race(place: Place, *, gated: bool) -> None:
    """One round: whoever wins executes steps 1 and 2, once; the others are told where the run is."""
    claims = place.claims()
    if not gated:
        place.open_gates(1, 2)
    contest = Race(place, **({} if gated else {"SECONDS": "0.5"}))
    contest.release()
    losers = contest.losers()
    (winner,) = [process for process in contest.processes if process not in losers]
    place.open_gates(1, 2)
    for loser in losers:
        done = end(loser)
        assert done.returncode == ELSEWHERE, done.stderr
        assert done.stdout == ""
        assert f"{place.run_id} is running in process {winner.pid}" in done.stderr.splitlines()[-1]
    done = end(winner)
    assert done.returncode == COMPLETED, done.stderr
    assert document(done)["result"] == [0, 1, 2]
    assert place.witnessed() == ["1", "2"]
    assert place.claims() == claims + 1


@pins("flows", 138)
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_i12_of_eight_processes_that_resume_one_run_at_once_one_wins(tmp_path, orphan, trials):
    """I12: one execution of each step that was not on record, one winner, seven losers with status 6 in time."""
    for number in range(max(1, trials(20) - HALF_SECOND_ROUNDS)):
        race(orphan.copy(tmp_path / f"round-{number}"), gated=True)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_i12_holds_with_task_bodies_that_last_half_a_second(tmp_path, orphan):
    """I12, with bodies that simply take their time: nobody waits for anybody."""
    for number in range(HALF_SECOND_ROUNDS):
        race(orphan.copy(tmp_path / f"round-{number}"), gated=False)


def test_a_live_owner_is_not_disturbed_by_a_resume(tmp_path, script):
    """Status 6 within two seconds, the log untouched; also when the owner was stopped: it may go on."""
    place = Place(tmp_path / "place")
    owner = place.begin(script)
    for stopped in (False, True):
        if stopped:
            owner.send_signal(signal.SIGSTOP)
        before, began = digest(place.home), time.monotonic()
        refused = cli("resume", place.run_id, **place.environment)
        assert time.monotonic() - began < LOSERS_TIME
        assert refused.returncode == ELSEWHERE
        assert "--steal" in refused.stderr
        assert digest(place.home) == before
    owner.send_signal(signal.SIGCONT)
    place.open_gates(1, 2)
    done = end(owner)
    assert (done.returncode, document(done)["result"]) == (COMPLETED, [0, 1, 2])
    assert place.witnessed() == ["0", "1", "2"]


def test_i12_a_zombie_that_wakes_after_the_thief_has_ended_appends_nothing(tmp_path, script, trials):
    """I12: SIGSTOP the owner, steal, complete, SIGCONT. The zombie is fenced: status 8, not a byte in the log."""
    for number in range(trials(3)):
        place = Place(tmp_path / f"place-{number}")
        zombie = place.begin(script)
        zombie.send_signal(signal.SIGSTOP)
        place.open_gates(1, 2)
        stolen = cli("resume", place.run_id, "--steal", "--json", **place.environment)
        assert (stolen.returncode, document(stolen)["result"]) == (COMPLETED, [0, 1, 2])
        before = logs(place.home)[0].read_bytes()
        zombie.send_signal(signal.SIGCONT)
        fenced = end(zombie)
        assert fenced.returncode == FENCED, fenced.stderr
        assert f"lost run {place.run_id}" in fenced.stderr.splitlines()[-1]
        assert fenced.stdout == ""
        assert logs(place.home)[0].read_bytes() == before
        assert place.witnessed() == ["0", "1", "1", "2"]
        assert document(cli("show", place.run_id, "--json", **place.environment)) == document(stolen)


def test_i12_a_zombie_that_wakes_while_the_thief_works_changes_nothing(tmp_path, script, trials):
    """I12: both processes run at the same time, one of them in vain; the result is the thief's."""
    for number in range(trials(3)):
        place = Place(tmp_path / f"place-{number}")
        zombie = place.begin(script)
        zombie.send_signal(signal.SIGSTOP)
        place.open_gates(1)
        thief = start("resume", place.run_id, "--steal", "--json", **place.environment)
        assert wait_until(lambda place=place: place.witnessed() == ["0", "1", "1", "2"], thief)
        zombie.send_signal(signal.SIGCONT)
        fenced = end(zombie)
        assert fenced.returncode == FENCED, fenced.stderr
        assert place.witnessed() == ["0", "1", "1", "2"], "the zombie began no further step"
        shown = document(cli("show", place.run_id, "--json", **place.environment))
        assert shown["state_type"] == "RUNNING"
        place.open_gates(2)
        stolen = end(thief)
        assert (stolen.returncode, document(stolen)["result"]) == (COMPLETED, [0, 1, 2])
        assert place.claims() == 2


def test_l21_a_claim_succeeds_at_once_after_its_owner_was_killed(orphan):
    """Nobody has to wait for a dead owner, and nobody has to know that it is dead."""
    orphan.open_gates(1, 2)
    done = cli("resume", orphan.run_id, "--json", **orphan.environment)
    assert (done.returncode, document(done)["result"]) == (COMPLETED, [0, 1, 2])
    assert orphan.claims() == 2
