# SPDX-License-Identifier: Apache-2.0
"""Row 26 of the fault model: signals and forks in every window of an append (L13, and no deadlock).

A real process appends from two threads while a timer interrupts it a thousand times a second and a third
thread forks children in between. Every append that returned is acknowledged on a pipe of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from microflow.stores import FileStore
from tests.log_support import RUN, TOKENS, check_chain

PROGRAM = """
import os, signal, sys, threading, warnings
from microflow.exceptions import Conflict
from microflow.stores import FileStore
from tests.log_support import RUN, claim, header, state

warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of forks in threads; that is the point here
store, rounds, raises = FileStore(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "raises"
store.append(RUN, [header(), claim()], expect=0, epoch=1)
lock, position, acknowledged, interrupts = threading.Lock(), 1, [], 0


class Interrupt(Exception):
    pass


def alarm(*_):
    global interrupts
    interrupts += 1
    if raises and interrupts % 50 == 0:
        raise Interrupt


def append_one(name):
    # as the client does it: one mutex over decide and append, and a new look after a Conflict or an interrupt
    global position
    with lock:
        try:
            position = store.append(RUN, [state(name)], expect=position, epoch=1)
        except (Conflict, Interrupt):
            reading = store.read(RUN).check()
            position = reading.position
            return any(record.data.get("to") == name for record in reading.records)
        return True


def work(who):
    for number in range(rounds):
        name = f"{who}-{number}"
        while True:
            try:
                if append_one(name):
                    acknowledged.append(name)
                    break
            except Interrupt:  # it fell between two steps of this loop: look whether the append counted
                continue


def fork():
    for _ in range(rounds // 10):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)


signal.signal(signal.SIGALRM, alarm)
threads = [threading.Thread(target=work, args=("thread",)), threading.Thread(target=fork)]
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
for thread in threads:
    thread.start()
work("main")
raises = False  # the last alarm may still be on its way
signal.setitimer(signal.ITIMER_REAL, 0)
for thread in threads:
    thread.join()
print(interrupts, *acknowledged)
"""


@pytest.mark.parametrize("handler", ["returns", "raises"])
def test_row_26_signals_and_forks_during_appends_lose_nothing_and_block_nobody(handler, tmp_path, trials):
    """L13: what was acknowledged is in the log, once; the process ends by itself, so nothing was deadlocked."""
    rounds = trials(400)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "home", str(rounds), handler],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONPATH": "."},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    interrupts, *acknowledged = done.stdout.split()
    assert int(interrupts) > 10, "the storm has to have been one"
    assert len(acknowledged) == 2 * rounds
    store = FileStore(tmp_path / "home")
    reading = store.read(RUN).check()
    store.close(RUN)
    told = [record.data["to"] for record in reading.records if record.kind == "state"]
    assert set(told) == set(acknowledged)
    if handler == "returns":  # an interrupt after the append makes the program above append once more
        assert len(told) == len(acknowledged)
    fold = check_chain((tmp_path / "home" / "runs" / f"{RUN}.jsonl").read_bytes())
    assert fold is not None
    assert reading.owner == TOKENS[0]
