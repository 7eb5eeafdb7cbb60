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
armed = False  # an interrupt may fall anywhere in an append of the main thread, not into this program's own steps


class Interrupt(Exception):
    pass


def alarm(*_):
    global interrupts
    interrupts += 1
    if raises and armed and interrupts % 3 == 0:
        raise Interrupt


def append_one(name):
    # as the client does it: one mutex over decide and append, and a new look after a Conflict or an interrupt
    global position, armed
    with lock:
        try:
            armed = threading.current_thread() is threading.main_thread()
            position = store.append(RUN, [state(name)], expect=position, epoch=1)
            armed = False
        except (Conflict, Interrupt):
            armed = False
            reading = store.read(RUN).check()
            position = reading.position
            return any(record.data.get("to") == name for record in reading.records)
        return True


def work(who):
    number = 0
    while number < rounds or (who == "main" and interrupts <= 10):  # a loaded machine delivers few signals
        name = f"{who}-{number}"
        while not append_one(name):
            pass
        acknowledged.append(name)
        number += 1


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
    assert len(acknowledged) >= 2 * rounds
    store = FileStore(tmp_path / "home")
    reading = store.read(RUN).check()
    store.close(RUN)
    told = [record.data["to"] for record in reading.records if record.kind == "state"]
    assert sorted(told) == sorted(acknowledged)
    fold = check_chain((tmp_path / "home" / "runs" / f"{RUN}.jsonl").read_bytes())
    assert fold is not None
    assert reading.owner == TOKENS[0]
