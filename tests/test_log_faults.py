# SPDX-License-Identifier: Apache-2.0
"""The fault table of the state log, row by row: torn logs, flipped bits, killed writers, failing calls, races.

Each test bears the number of its row and the invariants (L1 to L19) that it proves. ``--trials N`` does N
rounds of each instead of the few that fit into a minute. The negative controls stand in
test_log_defences.py: there, with one defence removed, the checkers used here must fail.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import threading
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microflow import _files
from microflow.exceptions import (
    Conflict,
    DamagedLog,
    Fenced,
    IndeterminateAppend,
    MicroflowException,
    NoSpace,
    StorageError,
)
from microflow.log import CORRUPT, TORN
from microflow.stores import FileStore

from .log_support import (
    OTHER,
    RUN,
    SEAM,
    TIME,
    Child,
    Fault,
    Fold,
    bytes_of,
    check_log_file,
    check_prefix_then_append,
    check_prefixes,
    check_same_history,
    claim,
    file_log,
    header,
    make_history,
    memory_log,
    short_writes,
    state,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LENGTH = 8  # lines of a generated history
END = 1 << 60  # a position beyond all records: who owns the run, and where it is


def histories(count: int) -> list[bytes]:
    return [make_history(seed, LENGTH) for seed in range(count)]


# ------------------------------------------------------------------------------------- rows 1 to 4: bytes


def test_row_1_every_byte_prefix_is_a_log_with_a_prefix_of_the_history(trials):
    """L1 to L6, L11: torn anywhere, a log folds without error, is not called damaged, and tells the truth."""
    seen = sum(check_prefixes(data) for data in histories(trials(3)))
    assert seen > 1000


def test_row_1_the_fold_does_not_depend_on_how_the_bytes_arrive():
    """L15: pieces of 1, 7, 100 and 1000 bytes give what one piece gives."""
    for data in histories(3):
        whole = Fold(data)
        for chunk in (1, 7, 100, 1000):
            pieces = Fold(data, chunk=chunk)
            assert (pieces.accepted, pieces.state()) == (whole.accepted, whole.state())


def test_row_2_after_any_cut_the_next_append_keeps_what_counted_and_counts_itself(trials):
    """L2, L3, L13, L16. A tail that is a whole line without its LF is adopted, never overwritten."""
    for data in histories(trials(2)):
        lines = data.count(b"\n")
        adopted = check_prefix_then_append(data)
        assert 0 < adopted <= lines


def test_row_2_recovery_interrupted_anywhere_is_finished_by_the_next():
    """L16: cut after the seal of a cut log, once more: the same history as if nobody had been killed in between."""
    (data,) = histories(1)
    for cut in range(1, len(data), 11):
        sealed = data[:cut] + b"\n"
        for again in range(max(1, cut - 3), len(sealed) + 1):
            fold = Fold(sealed[:again])
            assert fold.accepted == Fold(data).accepted[: len(fold.accepted)]
            assert fold.status != CORRUPT


def test_row_3_no_flipped_bit_makes_another_history(trials):
    """L2, L18: each flip is found, but in the last 17 bytes, where it cannot be told from a torn tail."""
    for data in histories(trials(1)):
        dead = [(start, end) for start, end, valid in spans(data) if not valid]
        silent = []
        for bit in range(0, len(data) * 8, 3):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            status = check_same_history(data, bytes(damaged))
            in_dead_line = any(start <= bit // 8 < end for start, end in dead)
            if status != CORRUPT and not in_dead_line and bit // 8 < len(data) - 17:
                silent.append(bit)
        # A flip in a void or orphaned line is in no record; all others must be seen.
        assert not silent


def spans(data: bytes) -> list[tuple[int, int, bool]]:
    """Where each line starts and ends, and whether it was accepted."""
    starts = set(Fold(data).chain.offsets)
    found, start = [], 0
    for part in data.split(b"\n")[:-1]:
        found.append((start, start + len(part) + 1, start in starts))
        start += len(part) + 1
    return found


EDITS = ("zeros", "noise", "cut", "copy", "repeat a line", "swap lines", "drop a line", "splice")


def edit(data: bytes, kind: str, chance: random.Random, foreign: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    start = chance.randrange(len(data))
    length = chance.randrange(1, 400)
    first, second = chance.randrange(len(lines)), chance.randrange(len(lines))
    if kind == "zeros":
        return data[:start] + b"\0" * length + data[start + length :]
    if kind == "noise":
        return data[:start] + chance.randbytes(length) + data[start + length :]
    if kind == "cut":
        return data[:start] + data[start + length :]
    if kind == "copy":
        to = chance.randrange(len(data))
        return data[:to] + data[start : start + length] + data[to:]
    if kind == "repeat a line":
        lines.insert(second, lines[first])
    elif kind == "swap lines":
        lines[first], lines[second] = lines[second], lines[first]
    elif kind == "drop a line":
        del lines[first]
    else:
        theirs = foreign.splitlines(keepends=True)
        count = chance.randrange(1, 4)
        at = chance.randrange(len(theirs))
        first = max(1, first)  # a log that begins with another header of the run is another log, and a whole one
        lines[first : first + chance.randrange(3)] = theirs[at : at + count]
    return b"".join(lines)


@pytest.mark.parametrize("kind", EDITS)
def test_row_4_no_edit_makes_another_history(kind, trials):
    """L2, L20: zeros, noise, cuts, copies, moved, lost and foreign lines hide history or change nothing."""
    chance = random.Random(kind)
    foreign = [make_history(seed, LENGTH, OTHER) for seed in range(3)]
    # another log of a run with the same id: only the nonce of its header differs
    foreign += [make_history(seed + 100, LENGTH) for seed in range(3)]
    for round in range(trials(250)):
        data = make_history(round % 5, LENGTH)
        damaged = edit(data, kind, chance, chance.choice(foreign))
        check_same_history(data, damaged)


def test_row_4_a_repeated_line_changes_nothing():
    """L3: wherever a line is said once more, the state is the same."""
    data = make_history(3, LENGTH)
    lines = data.splitlines(keepends=True)
    want = Fold(data)
    for index, each in enumerate(lines):
        for at in range(index + 1, len(lines) + 1):
            again = Fold(b"".join([*lines[:at], each, *lines[at:]]))
            assert again.accepted == want.accepted
            assert again.status != CORRUPT


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.binary(max_size=600), st.integers(0, 3))
def test_row_4_any_bytes_fold_without_error(noise, seed):
    """L1: whatever follows a log, or stands alone, folding it raises nothing."""
    data = make_history(seed, LENGTH)
    assert Fold(data + noise).accepted == Fold(data).accepted
    Fold(noise)


# ------------------------------------------------------------------------------------- row 5: kill -9


def write_until_killed(path: str, number: int, seed: int, say: Callable[[str], None]) -> None:
    """A writer: requests, and now and then a claim and records under it. Says what was acknowledged, after it was.

    Half of the writers die in the middle of a write: the kernel cuts one at a page boundary only rarely.
    """
    chance = random.Random(seed)
    real = _files.write
    if number % 2:

        def torn(descriptor: int, data: bytes) -> int:
            if chance.random() < 0.05:
                real(descriptor, data[: chance.randrange(len(data))])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(descriptor, data)

        _files.write = torn
    log = file_log(path)
    position, epoch, count = log.read().position, None, 0
    while True:
        count += 1
        nonce = f"{os.getpid()}.{count}"
        bodies = [state("RUNNING", nonce=nonce)]
        reading = log.read(position)
        if chance.random() < 0.1:
            epoch, bodies = reading.epoch + 1, [claim(), *bodies]
        try:
            position = log.append(bodies, expect=reading.position, epoch=epoch)
            say(f"{position - 1} {nonce} {epoch or 0} {len(bodies)}")
        except Conflict:
            epoch = None if len(bodies) > 1 else epoch
        except Fenced:
            epoch = None


@pytest.mark.slow
def test_row_5_kill_9_loses_no_acknowledged_append_and_no_two_claims_share_an_epoch(tmp_path, trials):
    """L13, L5, L3, L6: writers are killed at random moments, in the middle of writes too; others go on."""
    file_log(tmp_path).append([header()], expect=0)
    path = tmp_path / f"{RUN}.jsonl"
    chance, acknowledged, kills = random.Random(5), [], 0
    claims: list[int] = []
    while kills < trials(208):
        children = [Child(partial(write_until_killed, str(tmp_path), number, kills + number)) for number in range(4)]
        chance.shuffle(children)
        for child in children:
            threading.Event().wait(chance.random() * 0.005)  # the moment of the kill is the random input here
            for text in child.kill():
                assert not text.startswith("ERROR"), text
                position, nonce, epoch, records = text.split()
                acknowledged.append((int(position), nonce))
                if records == "2":
                    claims.append(int(epoch))
            kills += 1
    fold = check_log_file(str(path), acknowledged)
    assert len(acknowledged) > kills / 4
    assert len(set(claims)) == len(claims), "L5: one accepted claim per epoch"
    assert fold.chain.orphans == 0
    assert fold.chain.dead, "no write was torn: the test did not reach what it is about"


# ------------------------------------------------------------------------------------- row 8: failing calls

ERRORS = ("EIO", "ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EINTR", "EAGAIN", "ESTALE")


class Life:
    """What one process does with a store; remembers what was acknowledged and what was refused."""

    def __init__(self, root: Path) -> None:
        self.store = FileStore(root, "disk")
        self.acknowledged: list[tuple[int, str]] = []
        self.refused: list[str] = []
        self.errors: list[MicroflowException] = []
        self.result: tuple[str, bytes] | None = None
        self.sync_failed = False

    def attempt(self, step: Callable[[], Any]) -> Any:
        try:
            return step()
        except MicroflowException as error:
            self.errors.append(error)
            return None

    def append(self, expect: int, nonce: str, *more: dict[str, Any], epoch: int | None = 1) -> int:
        bodies = [*more, state("RUNNING", nonce=nonce)]
        try:
            position = self.store.append(RUN, bodies, expect=expect, epoch=epoch)
        except IndeterminateAppend:
            raise
        except MicroflowException:
            self.refused.append(nonce)
            raise
        assert not self.sync_failed, "L19: an append succeeded after a sync had failed"
        self.acknowledged.append((expect, nonce))
        return position

    def sync(self, position: int) -> None:
        try:
            self.store.sync(RUN, position)
        except IndeterminateAppend:
            self.sync_failed = True
            raise

    def live(self) -> None:
        token = self.attempt(self.store.own)
        position = self.attempt(lambda: self.append(0, "first", header(), claim(token or "0" * 32))) or 0
        for number in range(3):
            if position:
                self.attempt(partial(self.sync, position))
                position = self.attempt(partial(self.append, position, f"n{number}")) or position
        name = self.attempt(lambda: self.store.put_result(RUN, b"value"))
        if name:
            self.result = (name, b"value")
            self.attempt(lambda: self.store.get_result(RUN, name, 5))
        self.attempt(lambda: self.store.read(RUN, 0))
        self.attempt(self.store.list)
        if token:
            self.attempt(lambda: self.store.is_alive("f" * 32))
            self.attempt(lambda: self.store.disown(token))
        self.attempt(lambda: self.store.close(RUN))


def judge(life: Life, root: Path) -> None:
    path = root / "runs" / f"{RUN}.jsonl"
    if life.acknowledged or path.exists():
        fold = check_log_file(str(path), life.acknowledged)
        nonces = {body.get("nonce") for _, _, body in fold.applied}
        assert nonces.isdisjoint(life.refused), "an append was refused, but its record counts"
    if life.result:
        assert FileStore(root).get_result(RUN, life.result[0], 5) == b"value"


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("after", [False, True], ids=["not done", "done"])
def test_row_8_a_failing_call_gives_a_documented_error_and_loses_nothing(name, after, tmp_path, monkeypatch):
    """L13, L19: the Nth call fails, for each N, before or after it took effect. No bare OSError, no lost append."""
    for sync in ("sync_data", "sync_full", "sync_folder"):
        monkeypatch.setattr(_files, sync, lambda *_: None)  # the disk is not the subject; its failures are
    number, hit = 0, set()
    while True:
        number += 1
        root = tmp_path / str(number)
        life = Life(root)
        with monkeypatch.context() as patch:
            fault = Fault(patch, number, getattr(errno, name), after=after)
            life.live()
            fault.armed = False
        if fault.hit is None:
            break
        hit.add(fault.hit)
        judge(life, root)
        for error in life.errors:
            assert str(tmp_path) in str(error) or RUN in str(error), f"the error names nothing: {error}"
        # whatever failed, the next process goes on
        store = FileStore(root)
        if life.acknowledged:
            position = store.read(RUN).check().position
            assert store.append(RUN, [state("LATER")], expect=position) == position + 1
        store.close(RUN)
    assert {"write", "try_lock", "unlock", "sync_full", "sync_data", "replace", "duplicate", "size"} <= hit
    assert hit <= set(SEAM)


def test_row_8_a_full_disk_is_no_space_and_nothing_was_recorded(tmp_path, monkeypatch):
    log = file_log(tmp_path)
    log.append([header()], expect=0)
    before = (tmp_path / f"{RUN}.jsonl").read_bytes()
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        with monkeypatch.context() as patch:
            Fault(patch, 1, code, ["write"])
            with pytest.raises(NoSpace, match=r"\.jsonl: .*free space") as refused:
                log.append([state()], expect=1)
        assert isinstance(refused.value.__cause__, OSError)
        assert (tmp_path / f"{RUN}.jsonl").read_bytes() == before
    assert log.append([state()], expect=1) == 2
    log.close()


# ------------------------------------------------------------------------------------- row 9: short writes


def test_row_9_a_short_write_of_any_length_is_taken_back(tmp_path, monkeypatch):
    """L11, L13: however many bytes were written, none stay, and the same append succeeds when there is space."""
    log = file_log(tmp_path)
    log.append([header()], expect=0)
    path = tmp_path / f"{RUN}.jsonl"
    before = path.read_bytes()
    whole = len(memory_with(before, state("SHORT"))) - len(before)
    for length in range(whole):
        with monkeypatch.context() as patch:
            short_writes(patch, length)
            with pytest.raises(NoSpace, match="taken back"):
                log.append([state("SHORT")], expect=1, time_us=TIME)
        assert path.read_bytes() == before
    assert log.append([state("SHORT")], expect=1, time_us=TIME) == 2
    log.close()


def memory_with(data: bytes, body: dict[str, Any]) -> bytes:
    log = memory_log(data)
    log.append([body], expect=1, time_us=TIME)
    return bytes_of(log)


def test_row_9_a_short_write_that_cannot_be_taken_back_poisons_the_handle_and_others_seal_it(tmp_path, monkeypatch):
    """L13, L16, L19: the handle is never used again; for everybody else the half line is a torn tail."""
    log = file_log(tmp_path)
    log.append([header()], expect=0)
    path = tmp_path / f"{RUN}.jsonl"
    for length in range(1, 60, 7):
        writer = file_log(tmp_path)
        expect = writer.read().position
        with monkeypatch.context() as patch:
            short_writes(patch, length)
            Fault(patch, 1, errno.EIO, ["truncate"])
            with pytest.raises(IndeterminateAppend, match="Open the log anew"):
                writer.append([state("LOST")], expect=expect)
        with pytest.raises(IndeterminateAppend, match="not used any more"):
            writer.append([state("LOST")], expect=expect)
        assert Fold(path.read_bytes()).status == TORN
        assert log.append([state("LATER")], expect=expect) == expect + 1
        writer.close()
    fold = check_log_file(str(path), [])
    assert not [body for _, _, body in fold.applied if body.get("to") == "LOST"]
    log.close()


def test_row_9_a_seal_that_falls_short_is_no_space(tmp_path, monkeypatch):
    """L16: recovery needs one byte; without it nothing changes."""
    log = file_log(tmp_path)
    log.append([header()], expect=0)
    path = tmp_path / f"{RUN}.jsonl"
    torn = path.read_bytes() + b'{"q":1,'
    path.write_bytes(torn)
    with monkeypatch.context() as patch:
        short_writes(patch, 0)
        with pytest.raises(NoSpace):
            log.append([state()], expect=1)
    assert path.read_bytes() == torn
    assert log.append([state()], expect=1) == 2
    assert log.read().status == "CLEAN"
    log.close()


# ------------------------------------------------------------------------------------- row 17: claims


def race(tmp_path: Path, count: int) -> list[tuple[int, list[str]]]:
    """`count` processes read the log, wait at a barrier, and claim the run at once."""
    gate_read, gate_write = os.pipe()

    def contend(say: Callable[[str], None]) -> None:
        os.close(gate_write)
        store = FileStore(tmp_path)
        token = store.own()
        reading = store.read(RUN, END)
        say("ready")
        os.read(gate_read, 1)  # ends when the parent closes its end
        try:
            store.append(RUN, [claim(token, pid=os.getpid())], expect=reading.position, epoch=reading.epoch + 1)
        except Conflict:
            raise SystemExit(6) from None
        say(token)

    children = [Child(contend) for _ in range(count)]
    for child in children:
        assert child.read_line() == "ready"
    os.close(gate_read)
    os.close(gate_write)
    return [child.wait() for child in children]


@pytest.mark.slow
def test_row_17_of_many_processes_that_claim_a_run_at_once_exactly_one_wins(tmp_path, trials):
    """L5: the others are told so by Conflict."""
    store = FileStore(tmp_path)
    store.append(RUN, [header()], expect=0)
    for round in range(trials(24)):
        count = 2 + round % 7
        outcomes = race(tmp_path, count)
        winners = [said[-1] for status, said in outcomes if status == 0]
        assert sorted(status for status, _ in outcomes) == [0] + [6] * (count - 1)
        reading = store.read(RUN, END)
        assert (reading.owner, reading.epoch) == (winners[0], round + 1)
        assert not store.is_alive(winners[0]), "its process has ended"
    fold = check_log_file(str(tmp_path / "runs" / f"{RUN}.jsonl"), [])
    assert fold.chain.orphans == 0
    store.close(RUN)


def test_row_17_of_many_threads_that_create_a_run_at_once_exactly_one_wins(tmp_path):
    """L4: the run is made once; each thread uses a store of its own, as a process would."""
    for round in range(10):
        root = tmp_path / str(round)
        barrier, outcomes = threading.Barrier(4), []

        def create(root: Path = root, barrier: threading.Barrier = barrier, outcomes: list[str] = outcomes) -> None:
            store = FileStore(root)
            barrier.wait()
            try:
                store.append(RUN, [header(), claim()], expect=0, epoch=1)
                outcomes.append("made")
            except Conflict:
                outcomes.append("conflict")
            store.close(RUN)

        threads = [threading.Thread(target=create) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["conflict"] * 3 + ["made"]
        assert check_log_file(str(root / "runs" / f"{RUN}.jsonl"), []).chain.next_position == 1


# ------------------------------------------------------------------------------------- rows 19, 20: stopped processes


def own_and_append(root: Path, run_id: str, say: Callable[[str], None]) -> None:
    store = FileStore(root)
    reading = store.read(run_id, END)
    token, epoch = store.own(), reading.epoch + 1
    position = store.append(run_id, [claim(token, pid=os.getpid())], expect=reading.position, epoch=epoch)
    say(token)
    while True:
        try:
            position = store.append(run_id, [state("BY THE OWNER")], expect=position, epoch=epoch)
        except Fenced as fenced:
            say(str(fenced))
            raise SystemExit(8) from None


@pytest.mark.slow
def test_row_19_a_stopped_owner_that_is_continued_after_a_takeover_appends_nothing_more(tmp_path, monkeypatch, trials):
    """L6, I12: SIGSTOP, steal, SIGCONT: the zombie gets Fenced at its next append."""
    monkeypatch.setattr(_files, "PATIENCE", 0.02)
    store = FileStore(tmp_path)
    for round in range(trials(20)):
        run_id = str(UUID(int=round))
        store.append(run_id, [header(run_id)], expect=0)
        zombie = Child(partial(own_and_append, tmp_path, run_id))
        token = zombie.read_line()
        stop(zombie)
        assert store.is_alive(token), "it is stopped, not dead: only force takes the run"
        thief = store.own()
        stolen = steal(store, run_id, thief, zombie)
        zombie.signal(signal.SIGCONT)
        status, said = zombie.wait()
        assert (status, len(said)) == (8, 1)
        assert "its claim was number 1, the current one is number 2" in said[0]
        assert store.read(run_id, stolen).records == [], "the zombie's records count"
        assert not store.is_alive(token)
        store.disown(thief)
        store.close(run_id)
        fold = check_log_file(str(tmp_path / "runs" / f"{run_id}.jsonl"), [], run_id)
        assert fold.chain.voids == 0, "the writer's own check came first"
        store.delete(run_id)


def stop(child: Child) -> None:
    child.signal(signal.SIGSTOP)
    os.waitpid(child.pid, os.WUNTRACED)


def steal(store: FileStore, run_id: str, token: str, zombie: Child) -> int:
    while True:
        reading = store.read(run_id, END)
        try:
            return store.append(run_id, [claim(token)], expect=reading.position, epoch=reading.epoch + 1)
        except Conflict:
            continue  # it had written its line and had not yet said so when we looked
        except StorageError:  # it was stopped while it held the lock: let it go on for a moment
            zombie.signal(signal.SIGCONT)
            threading.Event().wait(random.random() * 0.001)
            stop(zombie)


def test_row_20_a_stopped_holder_of_the_lock_is_an_error_that_names_it_and_ends_with_it(tmp_path, monkeypatch):
    """L21: others wait for the lock until their patience ends; they go on as soon as the holder is dead."""
    store = FileStore(tmp_path)
    store.append(RUN, [header(), claim(pid=4711, host="here")], expect=0, epoch=1)
    real = _files.write

    def stop_in_the_write(say: Callable[[str], None]) -> None:
        def write(descriptor: int, data: bytes) -> int:
            say("in")
            os.kill(os.getpid(), signal.SIGSTOP)
            return real(descriptor, data)

        monkeypatch.setattr(_files, "write", write)
        FileStore(tmp_path).append(RUN, [state()], expect=1)

    child = Child(stop_in_the_write)
    assert child.read_line() == "in"
    os.waitpid(child.pid, os.WUNTRACED)  # it has stopped itself
    monkeypatch.setattr(_files, "PATIENCE", 0.05)
    with pytest.raises(StorageError, match=r"stays locked .*process 4711 on here") as refused:
        store.append(RUN, [state()], expect=1)
    assert isinstance(refused.value.__cause__, TimeoutError)
    assert store.read(RUN).position == 1, "readers need no lock"
    child.kill()
    assert store.append(RUN, [state()], expect=1) == 2
    store.close(RUN)


# ------------------------------------------------------------------------------------- threads of one process


def test_threads_that_append_to_one_log_get_each_position_once(tmp_path):
    """L3, L13: Conflict says who was late; nothing is lost and nothing stands twice."""
    store = FileStore(tmp_path)
    store.append(RUN, [header()], expect=0)
    acknowledged: list[tuple[int, str]] = []

    def work(number: int) -> None:
        for count in range(25):
            nonce = f"{number}.{count}"
            while True:
                expect = store.read(RUN, END).position
                with contextlib.suppress(Conflict):
                    store.append(RUN, [state(nonce=nonce)], expect=expect)
                    acknowledged.append((expect, nonce))
                    break

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fold = check_log_file(str(tmp_path / "runs" / f"{RUN}.jsonl"), acknowledged)
    assert fold.chain.next_position == 1 + 6 * 25
    assert fold.chain.orphans == fold.chain.dead == 0
    store.close(RUN)


def test_a_damaged_log_is_never_written_to(tmp_path):
    """L18: not by an append, a claim, a seal, a read or a sync; and the other run is as it was (L20)."""
    store = FileStore(tmp_path, "disk")
    store.append(OTHER, [header(OTHER)], expect=0)
    path = tmp_path / "runs" / f"{RUN}.jsonl"
    data = make_history(1, LENGTH)
    damaged = bytearray(data)
    damaged[data.index(b"\n") + 60] ^= 4
    path.write_bytes(bytes(damaged) + b'{"q":')
    path.chmod(0o600)
    before = path.read_bytes()
    reading = store.read(RUN)
    assert reading.status == CORRUPT
    for bodies, epoch in (([state()], None), ([claim()], reading.epoch + 1)):
        with pytest.raises(DamagedLog, match=r"damaged at line 2 \(byte \d+\)"):
            store.append(RUN, bodies, expect=reading.position, epoch=epoch)
    assert path.read_bytes() == before
    assert store.append(OTHER, [state()], expect=1) == 2
    store.close(RUN)
    store.close(OTHER)
