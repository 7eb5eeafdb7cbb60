# SPDX-License-Identifier: Apache-2.0
"""The append protocol, reading, and group commit: over a file and over memory, then over files only."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from microflow import _chain, _files
from microflow._media import FileMedium, MemoryMedium, storage_error
from microflow.events import Record
from microflow.exceptions import (
    Conflict,
    DamagedLog,
    Fenced,
    IndeterminateAppend,
    LogFormatTooNew,
    NoSpace,
    ObjectNotFound,
    StorageError,
)
from microflow.log import (
    CLEAN,
    CORRUPT,
    FORMAT_VERSION,
    KINDS,
    MAXIMUM_LINE,
    TORN,
    Chain,
    Log,
    Reading,
)

from .log_support import (
    OTHER,
    RUN,
    TIME,
    Fault,
    Fold,
    chained,
    checksum_of,
    claim,
    file_log,
    header,
    make_history,
    memory_log,
    sealed,
    state,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


# ------------------------------------------------------------------------------------------------ over file and memory


class Place:
    """Where the bytes of a log are: opened as often as a test likes, and written to behind its back."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._memory = MemoryMedium("memory")
        self._logs: list[Log] = []

    def open(self) -> Log:
        log = Log(RUN, self._memory) if self._folder is None else file_log(self._folder)
        self._logs.append(log)
        return log

    @property
    def data(self) -> bytes:
        if self._folder is None:
            return bytes(self._memory.data)
        return (self._folder / f"{RUN}.jsonl").read_bytes()

    @data.setter
    def data(self, data: bytes) -> None:
        if self._folder is None:
            self._memory.data[:] = data
        else:
            path = self._folder / f"{RUN}.jsonl"
            path.write_bytes(data)
            path.chmod(0o600)

    def close(self) -> None:
        for log in self._logs:
            log.close()


@pytest.fixture(params=["file", "memory"])
def place(request, tmp_path) -> Iterator[Place]:
    found = Place(tmp_path if request.param == "file" else None)
    yield found
    found.close()


def tos(reading: Reading) -> list[Any]:
    return [record.data.get("to") for record in reading.records]


def test_what_was_appended_is_read_from_any_position(place):
    """L13: by the writer and by others, as records."""
    log = place.open()
    assert log.append([header(), claim()], expect=0, epoch=1, time_us=TIME) == 1
    for number in range(1, 6):
        assert log.append([state(f"{number}"), state("+")], expect=number, epoch=1) == number + 1
    for reader in (log, place.open()):
        for position in range(8):
            reading = reader.read(position)
            assert (
                tos(reading)[-2 * (6 - position) :][: 2 * max(0, 6 - position)]
                == [to for number in range(max(position, 1), 6) for to in (f"{number}", "+")]
                or position == 0
            )
            assert (reading.position, reading.epoch, reading.owner, reading.status) == (6, 1, "a" * 32, CLEAN)
            assert (reading.owner_pid, reading.owner_host) == (4711, "here")
    assert place.open().read().records[0] == Record(RUN, 0, 1, TIME, "run", header())


def test_a_reader_sees_what_was_added_since_it_looked_together_with_what_it_knew(place):
    writer, reader = place.open(), place.open()
    writer.append([header()], expect=0)
    writer.append([state("1")], expect=1)
    assert tos(reader.read(1)) == ["1"]
    writer.append([state("2")], expect=2)
    assert tos(reader.read(1)) == ["1", "2"]
    writer.append([state("3")], expect=3)
    assert tos(reader.read(3)) == ["3"]
    writer.append([state("4")], expect=4)
    assert tos(reader.read(5)) == []


def test_foreign_lines_are_told_from_those_appended_here(place):
    here, there = place.open(), place.open()
    here.append([header()], expect=0)
    there.append([state("THERE")], expect=1)
    here.append([state("HERE")], expect=2)
    assert tos(here.read(foreign=True)) == ["THERE"]
    assert tos(there.read(foreign=True)) == [None, "HERE"]
    assert tos(here.read()) == [None, "THERE", "HERE"]


def test_a_second_writer_for_the_same_position_gets_a_conflict(place):
    """L3: compare-and-append."""
    one, two = place.open(), place.open()
    one.append([header()], expect=0)
    with pytest.raises(Conflict, match="at position 1, not 0"):
        two.append([header()], expect=0)
    two.append([state()], expect=1)
    for expect in (1, 3):
        with pytest.raises(Conflict, match=f"at position 2, not {expect}"):
            one.append([state()], expect=expect)
    assert one.append([state()], expect=2) == 3


def test_a_claim_takes_the_next_epoch_and_fences_the_owner_before(place):
    """L5, L6."""
    one, two = place.open(), place.open()
    one.append([header(), claim()], expect=0, epoch=1)
    two.append([claim("b" * 32, pid=7, host="there")], expect=1, epoch=2)
    before = place.data
    for expect in (1, 2):
        with pytest.raises(Fenced, match="its claim was number 1, the current one is number 2, of process 7 on there"):
            one.append([state()], expect=expect, epoch=1)
    with pytest.raises(Conflict):
        one.append([claim()], expect=1, epoch=2)
    with pytest.raises(Conflict):  # not yet an owner, so it cannot have lost its claim
        one.append([claim()], expect=1, epoch=1)
    assert place.data == before
    assert one.append([state("REQUEST")], expect=2) == 3


@pytest.mark.parametrize(
    ("bodies", "epoch"), [([claim()], 3), ([claim()], 1), ([claim()], None), ([state()], 2)], ids=str
)
def test_an_epoch_that_does_not_follow_is_a_mistake_of_the_caller(place, bodies, epoch):
    """L5: and nothing is written."""
    log = place.open()
    log.append([header(), claim()], expect=0, epoch=1)
    before = place.data
    with pytest.raises(ValueError, match="does not follow"):
        log.append(bodies, expect=1, epoch=epoch)
    assert place.data == before


def test_a_log_begins_with_its_header_and_nothing_else(place):
    """L4."""
    log = place.open()
    for bodies in ([state()], [header(OTHER)], [claim()]):
        with pytest.raises(ValueError, match="begins with the header"):
            log.append(bodies, expect=0)
    assert place.data == b""
    assert log.append([header()], expect=0) == 1


def test_a_log_without_a_first_line_was_never_created(place):
    """3.5(6): its creator was killed. Readers say so; whoever creates the run begins anew."""
    for torn in (b"", b'{"q":0,', b'{"q":0,\n', make_history(1)[:100]):
        place.data = torn
        with pytest.raises(ObjectNotFound, match="was never created"):
            place.open().read()
    assert place.open().append([header()], expect=0) == 1
    assert place.open().read().position == 1


def test_a_first_line_that_lacks_only_its_lf_is_adopted_by_the_next_creator(place):
    """L2, L16."""
    place.data = chained([header()])[0][:-1]
    with pytest.raises(ObjectNotFound):
        place.open().read()
    with pytest.raises(Conflict):
        place.open().append([header()], expect=0)
    assert place.open().read().position == 1


def test_a_reader_writes_nothing_and_does_not_wait_for_a_torn_tail(place):
    data = make_history(2)
    place.data = data + b'{"q":10,"p'
    log = place.open()
    assert (log.read().status, log.read().position) == (TORN, Fold(data).chain.next_position)
    assert place.data == data + b'{"q":10,"p'
    place.data = data
    assert log.read().status == CLEAN, "a writer took its half line back"


def test_damage_is_no_exception_for_readers_until_they_ask(place):
    """L18, and what stands before the damage stays readable."""
    lines = chained([header()], [state("1")], [state("2")], [state("3")])
    place.data = b"".join([*lines[:2], lines[2].replace(b'"2"', b'"9"'), lines[3]])
    before = place.data
    log = place.open()
    reading = log.read(1)
    assert (tos(reading), reading.status, reading.position) == (["1"], CORRUPT, 2)
    with pytest.raises(DamagedLog, match=r"line 3 \(byte ") as damage:
        reading.check()
    assert (damage.value.line, damage.value.offset) == (3, len(lines[0]) + len(lines[1]))
    assert damage.value is reading.problem
    with pytest.raises(DamagedLog):
        log.append([state()], expect=2)
    assert place.data == before
    # damaged from the first line on: not "never created"
    place.data = lines[0].replace(b"microflow", b"macroflow") + lines[1]
    reading = place.open().read()
    assert (reading.records, reading.position, type(reading.problem)) == ([], 0, DamagedLog)


def test_a_log_of_a_newer_version_is_read_as_far_as_it_is_understood_and_never_written_to(place):
    """L17."""
    place.data = b"".join(chained([header(writer=2)], [state("A")]))
    log = place.open()
    assert tos(log.read().check()) == [None, "A"]
    with pytest.raises(LogFormatTooNew, match="needs format version 2, this is version 1"):
        log.append([state()], expect=2)

    place.data = b"".join(chained([header(reader=2)], [state("A")]))
    reading = place.open().read()
    assert (reading.records, reading.position) == ([], 0)
    with pytest.raises(LogFormatTooNew, match="reading it needs format version 2"):
        reading.check()

    lines = chained([header()], [state("A")])
    future = sealed(b'{"q":2,"p":"%b","t":1,"b":[{"k":"future"}]' % checksum_of(lines[1]).encode())
    place.data = b"".join([*lines, future, b"\n", b"torn"])
    before, log = place.data, place.open()
    assert tos(log.read()) == [None, "A"]
    with pytest.raises(LogFormatTooNew, match="line 3 holds a record of the kind 'future'"):
        log.append([state()], expect=2)
    assert place.data == before


def test_a_line_adopted_by_the_seal_may_forbid_the_append(place):
    """L17: looked at again after the tail has become a line."""
    first = chained([header()])[0]
    future = sealed(b'{"q":1,"p":"%b","t":1,"b":[{"k":"future"}]' % checksum_of(first).encode())
    place.data = first + future
    with pytest.raises(LogFormatTooNew):
        place.open().append([state()], expect=1)
    assert place.data == first + future + b"\n"


def test_a_tail_of_more_than_a_mebibyte_is_sealed_like_any_other(place):
    """L1, L16: a file system may leave megabytes of zeros after a power cut."""
    first = chained([header()])[0]
    place.data = first + b"\0" * (2 * MAXIMUM_LINE + 5)
    log = place.open()
    assert log.read().status == TORN
    assert log.append([state("A")], expect=1) == 2
    assert tos(place.open().read(1)) == ["A"]
    place.data = first + b"\0" * (2 * MAXIMUM_LINE)
    assert place.open().append([state("A")], expect=1) == 2


def test_long_logs_are_read_in_pieces(place):
    log = place.open()
    log.append([header()], expect=0)
    text = "x" * 300_000
    for number in range(1, 9):
        log.append([state(f"{number}", text=text)], expect=number)
    for reader in (log, place.open()):
        assert tos(reader.read(1)) == tos(reader.read(1)) == [f"{number}" for number in range(1, 9)]


def test_a_log_that_got_shorter_is_folded_anew(place):
    """L15: what was read is a cache of the bytes and nothing else."""
    lines = chained([header()], [state("1")], [state("2")])
    place.data = b"".join(lines)
    log = place.open()
    assert log.read().position == 3
    place.data = b"".join(lines[:2])
    assert log.read().position == 2
    place.data = b"".join(lines[:1])
    with pytest.raises(Conflict):
        log.append([state()], expect=2)
    assert log.append([state("NEW")], expect=1) == 2
    assert tos(place.open().read()) == [None, "NEW"]


@pytest.mark.parametrize("position", [1, 2])
def test_bytes_that_change_after_they_were_read_are_seen_when_they_are_read_again(place, position):
    """L15, L18: a known line is checked again by its checksum."""
    lines = chained([header()], [state("1")], [state("2")])
    place.data = b"".join(lines)
    log = place.open()
    assert tos(log.read(1)) == ["1", "2"]
    place.data = (
        place.data.replace(b'"1"', b'"9"') if position == 1 else b"".join(lines[:2]) + lines[2].replace(b"\n", b" ")
    )
    assert log.read(1).status == (CORRUPT if position == 1 else TORN)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_interrupt_leaves_no_half_changed_memory(place, monkeypatch, moment):
    """L15: KeyboardInterrupt in the middle of accounting for a line: the next call folds the bytes anew."""
    log = place.open()
    log.append([header(), claim()], expect=0, epoch=1)
    real = Chain._extend

    def interrupted(self: Chain, *args: Any) -> None:
        if moment == "after":
            real(self, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Chain, "_extend", interrupted)
        with pytest.raises(KeyboardInterrupt):
            log.append([claim("b" * 32)], expect=1, epoch=2)
    assert log._chain.epoch == 2, "half changed"
    reading = log.read()
    assert (reading.position, reading.epoch, reading.owner) == (2, 2, "b" * 32)
    assert log.append([state()], expect=2, epoch=2) == 3


def test_an_interrupt_while_others_lines_are_read_loses_none_of_them(place, monkeypatch):
    writer, reader = place.open(), place.open()
    writer.append([header()], expect=0)
    reader.read()
    for number in range(1, 4):
        writer.append([state(f"{number}")], expect=number)
    calls = iter([None, None])
    real = Chain._extend

    def interrupted(self: Chain, *args: Any) -> None:
        real(self, *args)
        if next(calls, "stop"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Chain, "_extend", interrupted)
        with pytest.raises(KeyboardInterrupt):
            reader.read(1)
    assert tos(reader.read(1)) == ["1", "2", "3"]


def test_the_writers_clock_is_only_a_comment(place):
    """L15: time may stand still or run backwards."""
    log = place.open()
    log.append([header()], expect=0, time_us=TIME)
    log.append([state("A")], expect=1, time_us=-TIME)
    assert [record.time for record in log.read().records] == [TIME, -TIME]
    assert log.append([state("B")], expect=2) == 3
    assert log.read(2).records[0].time > TIME


# ------------------------------------------------------------------------------------------------ files only


@pytest.fixture
def log(tmp_path) -> Iterator[Log]:
    found = file_log(tmp_path)
    yield found
    found.close()


def test_a_log_that_is_not_there_is_not_found_and_not_made(log, tmp_path):
    for call in (log.read, lambda: log.append([state()], expect=1), lambda: log.sync(1)):
        with pytest.raises(ObjectNotFound, match=r"there is no log .*\.jsonl"):
            call()
    assert not (tmp_path / f"{RUN}.jsonl").exists()


def test_a_resting_log_goes_on_where_it_was(log, monkeypatch):
    log.append([header()], expect=0)
    log.append([state("1")], expect=1)
    log.rest()
    log.rest()
    before = log._chain
    assert log.append([state("2")], expect=2) == 3
    assert log._chain is before, "nothing was folded anew"
    log._mutex.acquire()
    log.rest()  # in use: does not wait
    log._mutex.release()
    assert log._medium._descriptor >= 0
    log.rest()
    assert tos(log.read()) == [None, "1", "2"]


@pytest.mark.parametrize("resting", [False, True])
def test_a_log_that_was_replaced_is_folded_anew(log, tmp_path, resting):
    """L15: the file that has the name is the log, not the file that had it."""
    log.append([header()], expect=0)
    log.append([state("OLD")], expect=1)
    if resting:
        log.rest()
    other = memory_log()
    other.append([header(nonce="1" * 32)], expect=0)
    for number in range(1, 4):
        other.append([state(f"{number}")], expect=number)
    new = tmp_path / "new"
    new.write_bytes(bytes(other._medium.data))  # type: ignore[union-attr]
    new.chmod(0o600)
    new.rename(tmp_path / f"{RUN}.jsonl")
    assert tos(log.read()) == [None, "1", "2", "3"]
    assert log.append([state("4")], expect=4) == 5


def test_a_log_that_was_deleted_is_not_found_and_not_written_to(log, tmp_path):
    log.append([header()], expect=0)
    os.unlink(tmp_path / f"{RUN}.jsonl")
    log._medium._next_look = 0  # type: ignore[union-attr]  # a second has passed
    with pytest.raises(ObjectNotFound):
        log.append([state()], expect=1)
    with pytest.raises(ObjectNotFound):
        log.read()
    assert log.append([header()], expect=0) == 1
    os.unlink(tmp_path / f"{RUN}.jsonl")
    with pytest.raises(ObjectNotFound):  # a claim looks at once
        log.append([claim()], expect=1, epoch=1)


def test_the_name_of_a_log_is_looked_at_once_a_second_and_not_at_each_append(log, monkeypatch):
    looks: list[int] = []
    real = _files.stat_open
    monkeypatch.setattr(_files, "stat_open", lambda descriptor: (looks.append(descriptor), real(descriptor))[1])
    log.append([header()], expect=0)
    for number in range(1, 50):
        log.append([state()], expect=number)
    assert 1 <= len(looks) <= 3


def test_a_lock_that_is_not_given_back_is_an_error_that_names_the_owner_if_there_is_one(log, tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "PATIENCE", 0.01)
    log.append([header()], expect=0)
    holder = _files.open_log(str(tmp_path / f"{RUN}.jsonl"), writable=True)
    assert _files.try_lock(holder)
    with pytest.raises(StorageError, match=r"stays locked \(another process\)"):
        log.append([state()], expect=1)
    _files.unlock(holder)
    log.append([claim()], expect=1, epoch=1)
    assert _files.try_lock(holder)
    with pytest.raises(StorageError, match="the run's owner is process 4711 on here"):
        log.append([state()], expect=2)
    _files.close(holder)
    assert log.append([state()], expect=2) == 3


def test_a_read_call_that_falls_short_is_repeated(log, monkeypatch):
    log.append([header()], expect=0)
    real = _files.read_at
    monkeypatch.setattr(_files, "read_at", lambda descriptor, length, offset: real(descriptor, min(length, 7), offset))
    other = Log(RUN, FileMedium(log._medium.location))
    assert other.read().position == 1
    other.close()


def test_a_file_that_ends_before_its_end_is_not_appended_to(log, tmp_path, monkeypatch):
    """The system says how long it is and gives fewer bytes: a sick disk, no torn tail."""
    log.append([header()], expect=0)
    log.append([state()], expect=1)
    other = file_log(tmp_path)
    monkeypatch.setattr(_files, "read_at", lambda *_: b"")
    with pytest.raises(StorageError, match="cannot be read up to its end"):
        other.append([state()], expect=2)
    with pytest.raises(StorageError, match="cannot be read up to its end"):
        other.append([header()], expect=0)
    monkeypatch.undo()
    assert other.read(0).position == 2
    other.close()


def test_an_unlock_that_fails_closes_the_file_which_unlocks_it(log, tmp_path, monkeypatch):
    """The line is written: it must be acknowledged."""
    log.append([header()], expect=0)
    with monkeypatch.context() as patch:
        Fault(patch, 1, errno.EIO, ["unlock"])
        assert log.append([state()], expect=1) == 2
    other = file_log(tmp_path)
    assert other.append([state()], expect=2) == 3
    other.close()


def test_a_failed_write_that_wrote_nothing_needs_no_undoing(log, monkeypatch):
    """A read-only disk can be neither written to nor cut: still, nothing has happened."""
    log.append([header()], expect=0)
    with monkeypatch.context() as patch:
        Fault(patch, 1, errno.EROFS, ["write"])
        Fault(patch, 1, errno.EROFS, ["truncate"])
        with pytest.raises(StorageError, match="Read-only"):
            log.append([state()], expect=1)
    assert log.append([state()], expect=1) == 2


def test_memory_has_no_errors_to_explain():
    with pytest.raises(AssertionError):
        MemoryMedium("memory").explain(OSError(errno.EIO, ""))
    assert isinstance(storage_error(OSError(errno.ENOSPC, "full"), "p"), NoSpace)
    assert str(storage_error(OSError("odd"), "path")) == "path: odd"


def test_memory_can_do_what_a_file_can():
    log = memory_log()
    log.append([header()], expect=0)
    log.sync(1)
    log.rest()
    log.close()
    assert log.read().position == 1


# ------------------------------------------------------------------------------------------------ sync


class Disk:
    """A disk whose flushes wait until they are let go, and can fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.flushes: list[str] = []
        self.started, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.error: OSError | None = None
        for name in ("sync_data", "sync_full", "sync_folder"):
            monkeypatch.setattr(_files, name, lambda _, name=name: self.flush(name))

    def flush(self, name: str) -> None:
        self.flushes.append(name)
        if name != "sync_folder":
            self.started.release()
            assert self.go.acquire(timeout=10)
        if self.error:
            raise self.error


def test_the_first_sync_takes_the_name_along_and_later_ones_only_the_data(log, monkeypatch):
    disk = Disk(monkeypatch)
    for _ in range(3):
        disk.go.release()
    log.append([header()], expect=0)
    log.sync(1)
    assert disk.flushes == ["sync_full", "sync_folder"]
    log.sync(1)
    log.sync(0)
    assert len(disk.flushes) == 2, "that is on the disk already"
    log.append([state()], expect=1)
    log.sync(2)
    assert disk.flushes == ["sync_full", "sync_folder", "sync_data"]


def test_one_flush_serves_all_threads_that_wait_and_appends_go_on_meanwhile(log, monkeypatch):
    """Group commit: the first leads; who comes while it flushes is served by the next flush, all at once."""
    disk = Disk(monkeypatch)
    log.append([header()], expect=0)
    threads = [threading.Thread(target=log.sync, args=(1,))]
    threads[0].start()
    assert disk.started.acquire(timeout=10)
    for position in range(1, 9):
        log.append([state()], expect=position)
        threads.append(threading.Thread(target=log.sync, args=(position + 1,)))
        threads[-1].start()
    for _ in range(2):
        disk.go.release()
    for thread in threads:
        thread.join(10)
    assert disk.flushes == ["sync_full", "sync_folder", "sync_data"]
    assert log._synced == 9


def test_after_a_failed_sync_nothing_goes_through_that_handle_any_more(log, tmp_path, monkeypatch):
    """L19: for the leader, for those who waited with it, and for all who come; another handle starts anew."""
    disk = Disk(monkeypatch)
    disk.error = OSError(errno.EIO, "Input/output error")
    log.append([header()], expect=0)
    errors: list[BaseException] = []

    def sync() -> None:
        try:
            log.sync(1)
        except IndeterminateAppend as error:
            errors.append(error)

    threads = [threading.Thread(target=sync) for _ in range(4)]
    for thread in threads:
        thread.start()
    disk.go.release()
    for thread in threads:
        thread.join(10)
    assert len(errors) == 4
    assert len(disk.flushes) == 1, "asking again would be answered with a lie"
    disk.error = None
    for call in (lambda: log.append([state()], expect=1), lambda: log.sync(1)):
        with pytest.raises(IndeterminateAppend, match="Input/output error"):
            call()
    assert log.read().position == 1, "reading is allowed"
    other = file_log(tmp_path)
    assert other.append([state()], expect=1) == 2
    other.close()


def test_a_log_may_be_closed_and_opened_while_it_is_synced(log, monkeypatch):
    """The flush has a descriptor of its own."""
    disk = Disk(monkeypatch)
    before = len(_files._descriptors)
    log.append([header()], expect=0)
    thread = threading.Thread(target=log.sync, args=(1,))
    thread.start()
    assert disk.started.acquire(timeout=10)
    log.close()
    log.append([state()], expect=1)
    disk.go.release()
    thread.join(10)
    assert log._synced == 1
    assert len(_files._descriptors) == before + 1


def test_what_others_appended_can_be_synced_before_acting_on_it(log, tmp_path):
    """3.7: visible is not yet durable."""
    log.append([header()], expect=0)
    other = file_log(tmp_path)
    other.sync(1)
    with pytest.raises(ValueError, match="nothing to sync up to 2"):
        other.sync(2)
    log.append([state()], expect=1)
    other.sync(2)
    other.close()


# ------------------------------------------------------------------------------------------------ the names


def test_the_kinds_and_the_version_are_those_of_the_grammar():
    from microflow import log as module

    assert FORMAT_VERSION == 1
    text = " ".join((module.__doc__ or "").split())
    assert ", ".join(["run", "claim", "release", "state", "task", "rename", "input", "note"]) + "." in text
    assert len(KINDS) == 8
    assert all(hasattr(module, name) for name in module.__all__)
    assert _chain.CLEAN in text
