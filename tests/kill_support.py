# SPDX-License-Identifier: Apache-2.0
"""What the tests with real processes share: starting and killing them, and a log reader of their own.

The reader (:func:`records`) follows the grammar at the head of ``microflow/log.py`` and shares no code with it, so
that a test about a log does not believe the code that wrote it.

As a program, ``python -m tests.kill_support READY GO ARGUMENT…`` is the command line behind a barrier: it imports
all that it needs, writes one byte to the descriptor READY, waits until GO is closed on the other side, and only then
runs ``microflow ARGUMENT…``.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 60.0  # seconds for what must happen; a machine under load is slow


# ---------------------------------------------------------------------------------------------------- processes


def environment(**changes: str) -> dict[str, str]:
    """This process's environment with microflow in reach, wherever the process starts."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8", **changes}


def command(*arguments: object) -> list[str]:
    """The words that start the command line."""
    return [sys.executable, "-X", "faulthandler", "-m", "microflow", *map(str, arguments)]


def cli(*arguments: object, cwd: Path | str | None = None, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return end(start(*arguments, cwd=cwd, **changes))


def start(*arguments: object, cwd: Path | str | None = None, **changes: str) -> subprocess.Popen[str]:
    """Start one command; kill or wait for it with :func:`end`."""
    return subprocess.Popen(
        command(*arguments),
        cwd=cwd,
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str], *, kill: bool = False) -> subprocess.CompletedProcess[str]:
    """Kill -9 a process if asked to, and wait for it. One that hangs fails the test, and shows its stacks."""
    if kill:
        process.kill()
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        raise AssertionError(f"{process.args!r} hung:\n{process.communicate()[1]}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> bool:
    """Wait for something to become true; False when `process` ends first."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if process is not None and process.poll() is not None:
            return condition()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)
    return True


def document(done: subprocess.CompletedProcess[str]) -> Any:
    """The one JSON document on standard output."""
    return json.loads(done.stdout)


def chance() -> random.Random:
    """A random source whose seed is on record: pytest shows what a failing test printed."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"random seed {seed}")
    return random.Random(seed)


# --------------------------------------------------------------------------------------------------- the home


def logs(home: Path) -> list[Path]:
    """The logs of a home, the oldest first."""
    return sorted((home / "runs").glob("*.jsonl"))


def root_log(home: Path) -> Path:
    """The log of the one run that nobody else started."""
    (found,) = root_logs(home)
    return found


def root_logs(home: Path) -> list[Path]:
    """The logs of runs that nobody else started. A log without a whole first line is no run: its creator was killed."""
    return [log for log in logs(home) if (written := records(log)) and "parent_flow" not in written[0]]


def size(home: Path) -> int:
    """The bytes of all logs of a home."""
    return sum(log.stat().st_size for log in logs(home))


def digest(home: Path) -> dict[str, str]:
    """Each file below a folder with the hash of what it holds, and each folder."""
    return {
        str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in home.rglob("*")
    }


def records(log: Path) -> list[dict[str, Any]]:
    """The records that count, in order. What the reader's rule leaves out is left out."""
    found: list[dict[str, Any]] = []
    position, previous, epoch = 0, f"{zlib.crc32(log.stem.encode()):08x}", 0
    *lines, _tail = log.read_bytes().split(b"\n")
    for text in lines:
        if text[-16:] != b',"c":"%08x"}' % zlib.crc32(text[:-16]):
            continue  # dead: a torn tail that somebody sealed
        line = json.loads(text)
        if (line["q"], line["p"]) != (position, previous):
            continue  # a duplicate or an orphan
        position, previous = position + 1, line["c"]
        first = line["b"][0 if line["q"] else 1 : 2]
        if first and first[0]["k"] == "claim" and line.get("e") == epoch + 1:
            epoch += 1
        elif line.get("e", epoch) != epoch:
            continue  # void: its writer had lost the run
        found += line["b"]
    return found


def ended(home: Path) -> set[str]:
    """The ids of the task runs whose end stands in a log of this home: completed, or failed for good."""
    written = [record for log in logs(home) for record in records(log)]
    last = {record["run"]: record["type"] for record in written if record["k"] == "state" and "run" in record}
    return {run for run, state_type in last.items() if state_type in ("COMPLETED", "FAILED")}


# ------------------------------------------------------------------------------------------ the barrier's program


def main() -> int:
    from microflow import cli as loaded  # here, because only this program needs it

    ready, go, *arguments = sys.argv[1:]
    os.write(int(ready), b".")
    os.read(int(go), 1)
    return loaded.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
