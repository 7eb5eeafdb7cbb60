# SPDX-License-Identifier: Apache-2.0
"""What the tests of the state log share: histories, checkers of the invariants, faults, and real processes.

A *checker* raises AssertionError when an invariant (L1 to L19) does not hold. The same checkers serve the
tests that prove a fact and, in test_log_defences.py, the negative controls: with a defence removed, its
checker must fail.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import time
import warnings
import zlib
from typing import TYPE_CHECKING, Any

from microflow import _files
from microflow._media import FileMedium, MemoryMedium
from microflow.exceptions import Conflict
from microflow.log import CORRUPT, Chain, Log, encode_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pytest

RUN = "0198f0e2-0001-7000-8000-00000000000a"
OTHER = "0198f0e2-0002-7000-8000-00000000000b"
TOKENS = ["a" * 32, "b" * 32, "c" * 32]
TIME = 1_763_690_000_000_000

# The functions of _files whose failure somebody has to deal with: the seam where tests break things.
SEAM = (
    "open_log", "open_new", "duplicate", "read_at", "write", "size", "truncate", "stat_open", "stat_path",
    "sync_data", "sync_full", "sync_folder", "try_lock", "unlock", "replace", "unlink", "list_folder",
    "remove_folder", "make_private_folder", "is_private_folder",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ histories


def header(run_id: str = RUN, **members: Any) -> dict[str, Any]:
    """The record that begins a log."""
    start = {"k": "run", "format": "microflow", "version": 1, "reader": 1, "writer": 1, "id": run_id, "nonce": "0" * 32}
    return {**start, **members}


def claim(owner: str = TOKENS[0], **members: Any) -> dict[str, Any]:
    return {"k": "claim", "owner": owner, "pid": 4711, "host": "here", **members}


def state(name: str = "RUNNING", **members: Any) -> dict[str, Any]:
    return {"k": "state", "to": name, **members}


def memory_log(data: bytes = b"", run_id: str = RUN) -> Log:
    """A log over these bytes, in memory."""
    medium = MemoryMedium(f"memory/{run_id}")
    medium.data += data
    return Log(run_id, medium)


def bytes_of(log: Log) -> bytes:
    medium = log._medium
    assert isinstance(medium, MemoryMedium)
    return bytes(medium.data)


def line(position: int, previous: str, bodies: Sequence[dict[str, Any]], epoch: int | None = None) -> bytes:
    return encode_line(position, previous, epoch, TIME + position, bodies)


def sealed(text: bytes) -> bytes:
    """A line (without LF) around `text`, with a checksum that fits, whatever `text` is."""
    return text + b',"c":"%08x"}' % zlib.crc32(text)


def checksum_of(encoded: bytes) -> str:
    return encoded[-11:-3].decode()


def chained(*batches: Sequence[dict[str, Any]], run_id: str = RUN, epochs: Sequence[int | None] = ()) -> list[bytes]:
    """One line per batch, each pointing at the one before, with the epochs given (or none)."""
    lines: list[bytes] = []
    previous = Chain(run_id).checksum
    for position, bodies in enumerate(batches):
        epoch = epochs[position] if position < len(epochs) else None
        lines.append(line(position, previous, bodies, epoch))
        previous = checksum_of(lines[-1])
    return lines


_TRICKY = ("", "a\nb", '","c":"01234567"}', "\x7f\x1b[31m", "\ud800", "käse\u2028", "\\", "]}", "x" * 300)


def make_history(seed: int, length: int = 10, run_id: str = RUN) -> bytes:
    """A log as compliant writers leave it: claims, takeovers, releases, requests, voids, sealed tails."""
    chance = random.Random(seed)
    log = memory_log(run_id=run_id)
    medium = log._medium
    assert isinstance(medium, MemoryMedium)
    position = log.append([header(run_id, nonce=f"{seed:032x}"), claim()], expect=0, epoch=1, time_us=TIME)
    epoch = 1
    while position < length:
        kind = chance.choice(["state", "state", "task", "batch", "request", "claim", "release", "c", "torn", "note"])
        bodies: list[dict[str, Any]] = [state("RUNNING", n=position, text=chance.choice(_TRICKY))]
        if kind == "task":
            bodies = [{"k": "task", "run": OTHER, "x": [chance.random(), None, True, {"y": [[]]}]}]
        elif kind == "batch":
            bodies = [state("PENDING", i=i) for i in range(chance.randrange(2, 6))]
        elif kind == "claim":
            epoch += 1
            bodies = [claim(chance.choice(TOKENS)), state("RUNNING")]
        elif kind == "release":
            bodies.append({"k": "release"})
        elif kind == "c":
            bodies = [{"k": "note", "a": [1], "c": "deadbeef"}, state("X", inner={"b": 1, "c": "01234567"})]
        elif kind == "note":
            bodies = [{"k": "metric", "o": 1, "value": 1e300}]
        elif kind == "torn":  # a writer was killed: a part of a line, sealed by the next append
            whole = line(position, log._chain.checksum, bodies, epoch)
            medium.data += whole[: chance.randrange(1, len(whole) - 1)]
        position = log.append(
            bodies, expect=position, epoch=None if kind == "request" else epoch, time_us=TIME + position
        )
        if kind == "batch" and chance.random() < 0.4:  # a zombie's line: it was fenced, but nobody stopped it
            zombie = line(position, log._chain.checksum, [state("ZOMBIE")], epoch - 1)
            medium.data += zombie
            position += 1
            log.read(position)
    return bytes(medium.data)


# ------------------------------------------------------------------------------------------------ folding


class Fold:
    """What a log says, in a form that compares."""

    def __init__(self, data: bytes, run_id: str = RUN, chunk: int = 1 << 20) -> None:
        self.chain = Chain(run_id)
        self.accepted: list[str] = []
        self.applied: list[tuple[int, int | None, dict[str, Any]]] = []
        while True:
            start = self.chain.offset
            lines = self.chain.feed(data[start : start + chunk])
            for each in lines:
                self.accepted.append(f"{each.position} {each.epoch} {each.void} {json.dumps(each.bodies)}")
                if not each.void:
                    self.applied += [(each.position, each.epoch, body) for body in each.bodies]
            if self.chain.offset == start:
                if start + chunk >= len(data):
                    break
                chunk *= 2  # as a reader does when a line does not fit

    @property
    def status(self) -> str:
        return self.chain.status

    def state(self) -> tuple[Any, ...]:
        chain = self.chain
        owner = (chain.epoch, chain.owner, chain.owner_pid, chain.owner_host)
        return (chain.next_position, chain.checksum, *owner, chain.dead, chain.voids, chain.orphans)


# ------------------------------------------------------------------------------------------------ checkers


def check_chain(data: bytes, run_id: str = RUN) -> Fold:
    """L3, L4, L5, L6 and L11 hold for what is accepted in these bytes."""
    fold = Fold(data, run_id)
    epoch, previous = 0, Chain(run_id).checksum
    chain = fold.chain
    for position in range(chain.next_position):
        start = chain.offsets[position]
        raw = data[start : data.index(b"\n", start)]
        members = json.loads(raw)
        assert (members["q"], members["p"]) == (position, previous), "L3: no gap, each p is its predecessor's c"
        previous = members["c"]
        bodies = members["b"]
        if position == 0:
            assert (bodies[0]["k"], bodies[0]["id"]) == ("run", run_id), "L4: line 0 is the header of this run"
        is_claim = len(bodies) > (position == 0) and bodies[position == 0]["k"] == "claim"
        applied = [body for at, _, body in fold.applied if at == position]
        assert applied in ([], bodies), "L11: the records of a line count all or none"
        if applied and is_claim:
            assert members.get("e") == epoch + 1, "L5: a claim is the epoch before plus 1"
            epoch += 1
        elif applied and "e" in members:
            assert members["e"] == epoch, "L6: an applied line of an owner has the current epoch"
    assert epoch == chain.epoch
    return fold


def check_prefixes(data: bytes, run_id: str = RUN, step: int = 1) -> int:
    """L1, L2, L3 to L6, L11: every byte prefix is a log with a prefix of the history, and nothing looks damaged."""
    whole = Fold(data, run_id)
    seen = 0
    for cut in range(0, len(data) + 1, step):
        prefix = data[:cut]
        fold = Fold(prefix, run_id)
        assert fold.accepted == whole.accepted[: len(fold.accepted)], f"L2: at byte {cut}"
        resumed = Fold(prefix + b"\n")
        assert CORRUPT not in (fold.status, resumed.status), (
            f"cut at byte {cut}, it looks damaged: {resumed.chain.damage}"
        )
        assert resumed.accepted == whole.accepted[: len(resumed.accepted)], f"L16: at byte {cut}"
        last = prefix.rfind(b"\n") + 1
        assert fold.state() == Fold(prefix[:last], run_id).state(), f"L1: at byte {cut}"
        seen += 1
    check_chain(data, run_id)
    return seen


def check_prefix_then_append(data: bytes, step: int = 1) -> int:
    """L2, L3, L13, L16: after any cut the next append keeps the history before it, and counts for everybody."""
    adopted = 0
    for cut in range(0, len(data) + 1, step):
        prefix = data[:cut]
        before = Fold(prefix)
        log = memory_log(prefix)
        bodies = [header()] if not before.chain.next_position else [state("AFTER", n=cut)]
        expect = before.chain.next_position
        while True:
            try:
                log.append(bodies, expect=expect, time_us=TIME)
                break
            except Conflict:  # the tail was a whole line that only lacked its LF: it counts now
                reading = log.read(expect)
                assert reading.position == expect + 1
                expect, adopted, bodies = expect + 1, adopted + 1, [state("AFTER", n=cut)]
        after = check_chain(bytes_of(log))
        assert after.accepted[: len(before.accepted)] == before.accepted, f"L2: at byte {cut}"
        assert after.applied[-1][2] == bodies[-1], f"L13: the acknowledged record is missing after byte {cut}"
        assert after.chain.next_position == expect + 1
        assert after.chain.orphans == before.chain.orphans
        assert log.read().position == after.chain.next_position
    return adopted


def check_same_history(original: bytes, damaged: bytes, run_id: str = RUN) -> str:
    """Damage may hide the end of the history (then it says so, if it can); it never makes another one."""
    want, got = Fold(original, run_id), Fold(damaged, run_id)
    assert got.accepted == want.accepted[: len(got.accepted)], "damage made a different history"
    return got.status


def check_log_file(path: str, acknowledged: Sequence[tuple[int, str]], run_id: str = RUN) -> Fold:
    """L3 to L6 hold in a file, it is not damaged, and every acknowledged append is in it (L13)."""
    with open(path, "rb") as file:
        fold = check_chain(file.read(), run_id)
    assert fold.status != CORRUPT, fold.chain.damage
    nonces = {(position, body.get("nonce")) for position, _, body in fold.applied}
    missing = [ack for ack in acknowledged if ack not in nonces]
    assert not missing, f"L13: acknowledged and lost: {missing[:5]}"
    return fold


# ------------------------------------------------------------------------------------------------ faults


class Fault:
    """Makes the Nth call of the seam fail, counting the calls of all functions, or of those given."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        number: int,
        code: int,
        only: Sequence[str] = SEAM,
        *,
        after: bool = False,
    ) -> None:
        self.calls = 0
        self.hit: str | None = None
        self.armed = True
        for name in only:
            monkeypatch.setattr(_files, name, self._wrap(name, getattr(_files, name), number, code, after))

    def _wrap(self, name: str, real: Callable[..., Any], number: int, code: int, after: bool) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self.armed:
                return real(*args, **kwargs)
            self.calls += 1
            if self.calls != number:
                return real(*args, **kwargs)
            self.hit = name
            if after:
                self._close(name, real(*args, **kwargs))
            raise OSError(code, os.strerror(code))

        return call

    def _close(self, name: str, result: Any) -> None:
        if name in ("open_log", "open_new", "duplicate"):
            _files.close(result)


def short_writes(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """From now on a write stores at most `length` bytes."""
    real = _files.write
    monkeypatch.setattr(_files, "write", lambda descriptor, data: real(descriptor, data[:length]))


# ------------------------------------------------------------------------------------------------ processes


class Child:
    """A real process that runs a function, and what it says through a pipe."""

    def __init__(self, run: Callable[[Callable[[str], None]], object]) -> None:
        self._read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: pytest's watchdog is a second thread
            self.pid = os.fork()
        if not self.pid:
            status = 99
            try:
                os.close(self._read)
                run(lambda text: (os.write(write, (text + "\n").encode()), None)[1])
                status = 0
            except SystemExit as exit:
                status = int(exit.code or 0)
            except BaseException as error:
                os.write(write, f"ERROR {type(error).__name__}: {error}\n".encode())
            finally:
                os._exit(status)
        os.close(write)
        self._rest = b""

    def read_line(self, patience: float = 20.0) -> str:
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], patience)
            assert ready, "the child process says nothing"
            data = os.read(self._read, 1 << 16)
            assert data, "the child process ended"
            self._rest += data
        text, _, self._rest = self._rest.partition(b"\n")
        return text.decode()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> tuple[int, list[str]]:
        """Its exit status (negative: the signal), and all that it still had to say, whole lines only."""
        data = self._rest
        while more := os.read(self._read, 1 << 16):
            data += more
        os.close(self._read)
        _, status = os.waitpid(self.pid, 0)
        lines = data.decode().split("\n")[:-1]
        return os.waitstatus_to_exitcode(status), lines

    def kill(self) -> list[str]:
        self.signal(signal.SIGKILL)
        return self.wait()[1]


def file_log(folder: Any, run_id: str = RUN) -> Log:
    return Log(run_id, FileMedium(os.path.join(str(folder), run_id + ".jsonl")))


def until(condition: Callable[[], Any], patience: float = 10.0) -> Any:
    """Wait for an effect in another thread or process that has no event to wait for."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.001)
    return value


def bodies_of(records: Sequence[Any]) -> Iterator[dict[str, Any]]:
    return (record.data for record in records)
