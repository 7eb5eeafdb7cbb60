# SPDX-License-Identifier: Apache-2.0
"""Each defence of the state log, and the proof that its test would miss it.

``DEFENCES`` lists them. To each belong a checker, which passes, and a removal, which takes the defence away:
then the checker must fail. A test that cannot fail proves nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import signal
import threading
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from microflow import _chain, _files, _follower, _strict_json
from microflow._media import FileMedium
from microflow.exceptions import (
    Conflict,
    DamagedLog,
    Fenced,
    IndeterminateAppend,
    LogFormatTooNew,
    MicroflowException,
    MissingResult,
    NoSpace,
    SerializationError,
    StorageError,
)
from microflow.log import Chain, Log
from microflow.stores import FileStore

from .log_support import (
    OTHER,
    RUN,
    SEAM,
    Child,
    Fault,
    Fold,
    bytes_of,
    chained,
    check_chain,
    check_log_file,
    check_prefix_then_append,
    check_prefixes,
    check_same_history,
    checksum_of,
    claim,
    file_log,
    header,
    line,
    make_history,
    memory_log,
    sealed,
    short_writes,
    state,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Patch = pytest.MonkeyPatch


class Defence(NamedTuple):
    """One defence: what it is, who notices that it is gone, and how it is taken away."""

    name: str
    check: Callable[[Path], object]
    remove: Callable[[Patch], object]


DEFENCES: list[Defence] = []


def removed_by(
    name: str, remove: Callable[[Patch], object]
) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    """Enters a checker into the list, with what removes the defence that it checks."""

    def enter(check: Callable[[Path], object]) -> Callable[[Path], object]:
        DEFENCES.append(Defence(name, check, remove))
        return check

    return enter


def nothing(*args: object, **kwargs: object) -> None:
    """Stands in the place of a defence."""


# ------------------------------------------------------------------------------------------------ what a line says


@removed_by("only the end of a line looks like its end", lambda patch: patch.setattr(_chain, "_hide_ends", str))
def torn_logs_do_not_look_damaged(folder: Path) -> None:
    """L1, L16."""
    log = memory_log()
    log.append([header()], expect=0)
    log.append([{"k": "note", "a": 1, "c": "deadbeef"}, state()], expect=1)
    check_prefixes(bytes_of(log))


def accept_one_kind_more(patch: Patch) -> None:
    patch.setattr(_chain, "KINDS", _chain.KINDS | {"future"})


@removed_by("names are text", lambda patch: patch.setattr(_strict_json, "_check_shape", nothing))
def a_name_that_stands_twice_is_never_acknowledged(folder: Path) -> None:
    """L13."""
    log = memory_log()
    log.append([header()], expect=0)
    try:
        log.append([state(value={1: "a", "1": "b"})], expect=1)
    except SerializationError:
        return
    assert Fold(bytes_of(log)).chain.next_position == 2, "acknowledged, but no reader accepts it"


@removed_by("writers limit the depth", lambda patch: patch.setattr(_strict_json, "_check_shape", nothing))
def a_line_too_deep_for_some_reader_is_never_acknowledged(folder: Path) -> None:
    """L13, L15: a reader whose stack is nearly full must not meet it."""
    value: Any = 1
    for _ in range(150):
        value = [value]
    log = memory_log()
    log.append([header()], expect=0)
    with pytest.raises(SerializationError):
        log.append([state(value=value)], expect=1)


def flip_one_bit_in_each_byte(folder: Path) -> None:
    data = make_history(2, 6)
    for byte in range(len(data)):
        damaged = bytearray(data)
        damaged[byte] ^= 1
        check_same_history(data, bytes(damaged))


@removed_by(
    "a line's own checksum",
    lambda patch: patch.setattr(zlib, "crc32", lambda data, real=zlib.crc32: real(data[:10])),
)
def a_flipped_bit_makes_no_other_history(folder: Path) -> None:
    """L2."""
    flip_one_bit_in_each_byte(folder)


def decode_anything(patch: Patch) -> None:
    import json

    patch.setattr(_strict_json, "decode", json.loads)


@removed_by("strict JSON", decode_anything)
def all_readers_accept_the_same_lines(folder: Path) -> None:
    """L15: what one JSON reader takes and another does not is no line for any."""
    for value in (b"NaN", b'{"a":1,"a":2}', b"\t1"):
        text = b'{"q":0,"p":"00000000","t":1,"b":[{"k":"state","x":%b}]' % value
        assert _chain.parse_line(sealed(text)) is None


# ------------------------------------------------------------------------------------------------ the reader's rule


@removed_by(
    "p: a line is pinned to the line before it",
    lambda patch: patch.setattr(Chain, "_continues", lambda self, position, previous: position == self.next_position),
)
def lines_of_another_log_make_no_history(folder: Path) -> None:
    """L20, L3."""
    for seed in range(5):
        data, foreign = make_history(seed, 6), make_history(seed + 50, 6, OTHER)
        ours, theirs = data.splitlines(keepends=True), foreign.splitlines(keepends=True)
        for at in range(1, len(ours)):
            check_same_history(data, b"".join([*ours[:at], *theirs[at:]]))


@removed_by("the epoch, in the fold", lambda patch: patch.setattr(Chain, "is_void", lambda *_: False))
def lines_of_a_fenced_owner_change_nothing(folder: Path) -> None:
    """L5, L6: even if nothing stopped it from writing them."""
    check_chain(b"".join(chained([header(), claim()], [claim("b" * 32)], [state("ZOMBIE")], epochs=[1, 2, 1])))


@removed_by("orphans stay orphans", lambda patch: patch.setattr(Chain, "_orphan", nothing))
def a_lost_branch_is_never_taken_for_a_gap(folder: Path) -> None:
    """L21: two writers without a lock: the loser's second line must not make the log look damaged."""
    first, winner = chained([header()], [state("WINNER")])
    loser = line(1, checksum_of(first), [state("LOSER")])
    on_loser = line(2, checksum_of(loser), [state("LOST")])
    again = line(3, checksum_of(on_loser), [state("LOST")])
    assert Fold(first + winner + loser + on_loser + again).chain.damage is None


@removed_by("gaps are damage", lambda patch: patch.setattr(Chain, "_miss", nothing))
def a_lost_line_is_noticed(folder: Path) -> None:
    """L18."""
    lines = chained([header()], [state("1")], [state("2")])
    assert Fold(lines[0] + lines[2]).chain.damage


@removed_by("a rotten last line is damage", lambda patch: patch.setattr(_chain, "_ends_whole", lambda _: False))
def a_rotten_last_line_is_noticed(folder: Path) -> None:
    """L18: it was acknowledged, so the next append must not take its place."""
    first, last = chained([header()], [state("A")])
    assert Fold(first + last.replace(b'"A"', b'"B"')).chain.damage


@removed_by("unknown kinds end what can be read", accept_one_kind_more)
def a_log_of_the_future_is_not_written_to(folder: Path) -> None:
    """L17."""
    first = chained([header()])[0]
    text = b'{"q":1,"p":"%b","t":1,"b":[{"k":"future"}]' % checksum_of(first).encode()
    log = memory_log(first + sealed(text) + b"\n")
    with pytest.raises(LogFormatTooNew):
        log.append([state()], expect=log.read().position)


# ------------------------------------------------------------------------------------------------ the append


def seal_without_reading_again(self: Log) -> int:
    end = self._fold()
    if self._chain.is_torn:
        self._medium.write(b"\n", end)
        end = self._medium.size()
        self._chain.offset, self._chain.tail = end, 0
    return end


def seal_in_the_same_write(self: FileMedium, data: bytes, end: int) -> None:
    self.data += b"\n" + data if self.data and self.data[-1:] != b"\n" else data  # type: ignore[attr-defined]


@removed_by(
    "the re-read after the seal", lambda patch: patch.setattr(Log, "_fold_and_seal", seal_without_reading_again)
)
def any_cut_is_recovered(folder: Path) -> None:
    """L2, L13, L16: exhaustively, for the fault stands at one byte of a line only."""
    check_prefix_then_append(make_history(0, 5))


@removed_by("a tail is sealed", lambda patch: patch.setattr(Chain, "is_torn", False))
def an_append_after_a_torn_tail_counts(folder: Path) -> None:
    """L13, L21."""
    log = memory_log(chained([header()])[0] + b'{"q":1,"p"')
    try:
        log.append([state()], expect=1)
    except StorageError as error:
        raise AssertionError("the log can never be written to again") from error
    assert Fold(bytes_of(log)).chain.next_position == 2


@removed_by("the position, compared before the append", lambda patch: patch.setattr(Log, "_check_turn", nothing))
def of_two_claims_one_wins(folder: Path) -> None:
    """L5, L13: the other is told."""
    one, two = file_log(folder), file_log(folder)
    one.append([header()], expect=0)
    try:
        one.append([claim()], expect=1, epoch=1)
        with pytest.raises(Conflict):
            two.append([claim("b" * 32)], expect=1, epoch=1)
    finally:
        one.close()
        two.close()


@removed_by("the epoch, checked before the append", lambda patch: patch.setattr(Log, "_check_fence", nothing))
def a_zombie_is_fenced(folder: Path) -> None:
    """L6: a process is stopped, its run is taken over, it is continued: its next append says that it lost the run."""
    store = FileStore(folder)
    store.append(RUN, [header()], expect=0)

    def own(say: Callable[[str], None]) -> None:
        mine = FileStore(folder)
        position = mine.append(RUN, [claim(mine.own())], expect=1, epoch=1)
        say("owner")
        os.kill(os.getpid(), signal.SIGSTOP)
        try:
            mine.append(RUN, [state("ZOMBIE")], expect=position, epoch=1)
        except Fenced:
            raise SystemExit(8) from None
        except MicroflowException:
            raise SystemExit(9) from None

    zombie = Child(own)
    assert zombie.read_line() == "owner"
    os.waitpid(zombie.pid, os.WUNTRACED)
    store.append(RUN, [claim("b" * 32)], expect=2, epoch=2)
    zombie.signal(signal.SIGCONT)
    status, _ = zombie.wait()
    store.close(RUN)
    assert status == 8


@removed_by("damaged logs are not written to", lambda patch: patch.setattr(Log, "_check_sound", nothing))
def a_damaged_log_stays_as_it_is(folder: Path) -> None:
    """L18."""
    lines = chained([header()], [state("1")], [state("2")])
    log = memory_log(lines[0] + lines[2])
    with pytest.raises(DamagedLog):
        log.append([state()], expect=1)


@removed_by("a short write is taken back", lambda patch: patch.setattr(FileMedium, "_undo", nothing))
def a_short_write_leaves_no_bytes(folder: Path) -> None:
    """L11, L16: what was refused is not there, whatever is written next."""
    log = file_log(folder)
    log.append([header()], expect=0)
    path = folder / f"{RUN}.jsonl"
    before = path.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        short_writes(patch, 25)
        with pytest.raises(NoSpace):
            log.append([state()], expect=1)
    log.close()
    assert path.read_bytes() == before


def write_the_rest(self: FileMedium, data: bytes, end: int) -> None:
    while data:
        data = data[_files.write(self._descriptor, data) :]


@removed_by("one write call for one line", lambda patch: patch.setattr(FileMedium, "write", write_the_rest))
def a_line_is_one_write_call(folder: Path) -> None:
    """L11: with the rest written later, a kill or a full disk falls between."""
    log = file_log(folder)
    log.append([header()], expect=0)
    calls: list[int] = []
    real = _files.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_files, "write", lambda descriptor, data: (calls.append(1), real(descriptor, data[:40]))[1])
        try:
            log.append([state()], expect=1)
        except NoSpace:
            pass
    log.close()
    assert len(calls) == 1


def never_half(patch: Patch) -> None:
    patch.setattr(Log, "_half", property(lambda _: False, nothing), raising=False)


@removed_by("half changed memory is thrown away", never_half)
def an_interrupt_leaves_a_usable_log(folder: Path) -> None:
    """L15: KeyboardInterrupt between two assignments."""
    log = memory_log()
    log.append([header()], expect=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Chain, "_extend", interrupt)  # the epoch has changed, the line is not yet entered
        with pytest.raises(KeyboardInterrupt):
            log.append([claim()], expect=1, epoch=1)
    reading = log.read()
    assert [record.kind for record in reading.records] == ["run", "claim"]
    assert log.append([state()], expect=2, epoch=1) == 3


def interrupt(*args: object) -> None:
    raise KeyboardInterrupt


# ------------------------------------------------------------------------------------------------ the lock


@removed_by("a lock is taken", lambda patch: patch.setattr(_files, "try_lock", lambda *_, **__: True))
def nobody_writes_between_the_look_and_the_write(folder: Path) -> None:
    """L13: what is acknowledged is never an orphan, however two writers are interleaved."""
    one, two = file_log(folder), file_log(folder)
    one.append([header()], expect=0)
    real, acknowledged = _files.write, []

    def write(descriptor: int, data: bytes) -> int:
        patch.setattr(_files, "write", real)
        try:
            two.append([state(nonce="two")], expect=1)
            acknowledged.append((1, "two"))
        except StorageError:
            pass  # it waited for the lock in vain
        return real(descriptor, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_files, "PATIENCE", 0.02)
        patch.setattr(_files, "write", write)
        one.append([state(nonce="one")], expect=1)
        acknowledged.append((1, "one"))
    one.close()
    two.close()
    check_log_file(str(folder / f"{RUN}.jsonl"), acknowledged)


@removed_by("flock, not lockf", lambda patch: patch.setattr(fcntl, "flock", fcntl.lockf))
def a_lock_excludes_other_openings_and_survives_them(folder: Path) -> None:
    path = str(folder / "file")
    first = _files.open_new(path)
    second = _files.open_log(path, writable=True)
    try:
        assert _files.try_lock(first)
        assert not _files.try_lock(second)
        with open(path) as other:
            other.read()
        assert not _files.try_lock(second)
    finally:
        _files.close(first)
        _files.close(second)


class Forgetful(set):  # type: ignore[type-arg]
    """A set of open files that remembers none."""

    def add(self, _: object) -> None: ...


@removed_by(
    "forked children close the parent's files", lambda patch: patch.setattr(_files, "_descriptors", Forgetful())
)
def an_owner_that_was_killed_is_dead_although_its_child_lives(folder: Path) -> None:
    """L21."""

    def own_and_fork(say: Callable[[str], None]) -> None:
        token = FileStore(folder).own()
        if os.fork() == 0:
            threading.Event().wait(60)
            os._exit(0)
        say(token)
        threading.Event().wait(60)

    # a session of its own, to end the grandchild by its group
    child = Child(lambda say: (os.setsid(), own_and_fork(say)))
    token = child.read_line()
    store = FileStore(folder)
    assert store.is_alive(token)
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)
    try:
        until(lambda: not store.is_alive(token), patience=0.5)
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        os.close(child._read)


@removed_by(
    "who looks takes a shared lock",
    lambda patch: patch.setattr(_files, "try_lock", lambda fd, shared=False, real=_files.try_lock: real(fd)),
)
def two_who_look_for_a_dead_owner_both_find_it_dead(folder: Path) -> None:
    """L21."""
    token = "f" * 32
    _files.make_private_folder(str(folder / "owners"))
    looking = _files.open_new(str(folder / "owners" / token))
    try:
        assert _files.try_lock(looking, shared=True)
        assert not FileStore(folder).is_alive(token)
    finally:
        _files.close(looking)


def any_link_count(patch: Patch) -> None:
    class Linked:
        st_nlink = 1

    patch.setattr(_files, "stat_open", lambda _: Linked)


@removed_by("the link count, after the owner's file is locked", any_link_count)
def a_token_whose_file_was_swept_away_is_not_used(folder: Path) -> None:
    """I12: or a live owner would be taken for a dead one."""
    real, count = _files.open_new, [0]

    def open_new(path: str) -> int:
        descriptor = real(path)
        count[0] += 1
        if count[0] == 1:
            os.unlink(path)
        return descriptor

    store = FileStore(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_files, "open_new", open_new)
        token = store.own()
    alive = FileStore(folder).is_alive(token)
    store.disown(token)
    assert alive


# ------------------------------------------------------------------------------------------------ the disk


@removed_by("a failed sync poisons the handle", lambda patch: patch.setattr(Log, "_check_poison", nothing))
def nothing_is_appended_after_a_failed_sync(folder: Path) -> None:
    """L19."""
    log = file_log(folder)
    log.append([header()], expect=0)
    try:
        with pytest.MonkeyPatch.context() as patch:
            Fault(patch, 1, errno.EIO, ["sync_full"])
            with pytest.raises(IndeterminateAppend):
                log.sync(1)
        with pytest.raises(IndeterminateAppend):
            log.append([state()], expect=1)
    finally:
        log.close()


class Disk:
    """A disk that loses at a power cut what was not synced: a file never synced is empty, as on XFS."""

    def __init__(self, patch: Patch) -> None:
        self._unsynced: set[tuple[int, int]] = set()
        real_write, real_sync = _files.write, _files.sync_full

        def write(descriptor: int, data: bytes) -> int:
            self._unsynced.add(self._inode(os.fstat(descriptor)))
            return real_write(descriptor, data)

        def sync(descriptor: int) -> None:
            real_sync(descriptor)
            self._unsynced.discard(self._inode(os.fstat(descriptor)))

        patch.setattr(_files, "write", write)
        for name in ("sync_data", "sync_full"):
            patch.setattr(_files, name, sync)

    @staticmethod
    def _inode(info: os.stat_result) -> tuple[int, int]:
        return info.st_dev, info.st_ino

    def cut(self, folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file() and self._inode(path.stat()) in self._unsynced:
                os.truncate(path, 0)


def write_result_without_sync(self: FileStore, path: str, data: bytes) -> None:
    descriptor = _files.open_new(path)
    _files.write(descriptor, data)
    _files.close(descriptor)


@removed_by(
    "results are synced before they get their name",
    lambda patch: patch.setattr(FileStore, "_write_result", write_result_without_sync),
)
def a_synced_record_names_a_result_that_is_there(folder: Path) -> None:
    """L12: after a power cut. Syncing the log does not sync the files that it names."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        store = FileStore(folder, "disk")
        store.append(RUN, [header()], expect=0)
        name = store.put_result(RUN, b"value")
        store.append(RUN, [state("COMPLETED", file=name)], expect=1)
        store.sync(RUN, 2)
        store.close(RUN)
        disk.cut(folder)
    after = FileStore(folder)
    named = after.read(RUN).records[-1].data["file"]
    after.close(RUN)
    try:
        assert after.get_result(RUN, named, 5) == b"value"
    except MissingResult as error:
        raise AssertionError("L12: a synced record names a file that is gone") from error


@removed_by("sync waits for the disk", lambda patch: patch.setattr(FileMedium, "flush", lambda _, fd: _files.close(fd)))
def what_was_synced_survives_a_power_cut(folder: Path) -> None:
    """L13 at level disk."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        store = FileStore(folder, "disk")
        store.append(RUN, [header()], expect=0)
        store.sync(RUN, 1)
        store.close(RUN)
        disk.cut(folder)
    check_log_file(str(folder / "runs" / f"{RUN}.jsonl"), [(0, "0" * 32)])


@removed_by(
    "results are checked when they are read",
    lambda patch: patch.setattr("microflow.stores._name_of", lambda data, real={}: real.setdefault("name", "0" * 64)),
)
def a_result_that_rotted_is_missing(folder: Path) -> None:
    """L12."""
    store = FileStore(folder)
    name = store.put_result(RUN, b"value")
    (folder / "runs" / f"{RUN}.results" / name).write_bytes(b"vAlue")
    with pytest.raises(MissingResult):
        store.get_result(RUN, name, 5)


# ------------------------------------------------------------------------------------------------ what others plant


def plant(folder: Path, kind: str) -> str:
    path = str(folder / f"{RUN}.jsonl")
    if kind == "fifo":
        os.mkfifo(path, 0o600)
        return path
    other = folder / "other"
    other.write_bytes(chained([header()])[0])
    other.chmod(0o600)
    (os.symlink if kind == "link" else os.link)(other, path)
    return path


@removed_by("links are not followed", lambda patch: patch.setattr(_files, "_ALWAYS", os.O_CLOEXEC | os.O_NONBLOCK))
def a_planted_link_is_refused(folder: Path) -> None:
    refuses(plant(folder, "link"))


@removed_by("a file is looked at after it was opened", lambda patch: patch.setattr(_files, "_check_ordinary", nothing))
def a_planted_hard_link_is_refused(folder: Path) -> None:
    refuses(plant(folder, "hard link"))


def refuses(path: str) -> None:
    try:
        descriptor = _files.open_log(path, writable=True)
    except OSError:
        return
    _files.close(descriptor)
    raise AssertionError("it was opened")


@removed_by("run ids are checked", lambda patch: patch.setattr("microflow.stores.check_run_id", str))
def a_run_id_is_no_path(folder: Path) -> None:
    store = FileStore(folder / "store")
    with pytest.raises(ValueError):
        store.put_result("../../secret", b"value")


@removed_by(
    "folders that others may write to are refused",
    lambda patch: patch.setattr(_files, "is_private_folder", lambda _: True),
)
def a_folder_that_others_may_write_to_is_refused(folder: Path) -> None:
    (folder / "runs").mkdir()
    (folder / "runs").chmod(0o777)
    with pytest.raises(StorageError):
        FileStore(folder).put_result(RUN, b"value")


# ------------------------------------------------------------------------------------------------ the follower


def forget_to_read_again(patch: Patch) -> None:
    real = _follower.Follower._publish_new
    patch.setattr(
        _follower.Follower, "_publish_new", lambda self, each: real(self, each) if each.position < 1 else False
    )


@removed_by("a dead owner's last words are read", forget_to_read_again)
def an_owner_that_let_go_is_no_orphan(folder: Path) -> None:
    """The owner ends after its log was read and before it is asked for."""
    owner, waiter = FileStore(folder), FileStore(folder)
    token = owner.own()
    owner.append(RUN, [header(), claim(token)], expect=0, epoch=1)
    seen: list[str] = []
    waiter.bus.subscribe_log(RUN, lambda record: seen.append(record.kind))
    asked = threading.Event()

    def is_alive(_: str) -> bool:
        owner.append(RUN, [{"k": "release"}], expect=1, epoch=1)
        asked.set()
        return False

    waiter._follower._is_alive = is_alive
    with waiter.follow(RUN, 0):
        assert asked.wait(10)
        until(lambda: len(seen) >= 3)
    owner.disown(token)
    owner.close(RUN)
    waiter.close(RUN)
    assert seen == ["run", "claim", "release"]


# ------------------------------------------------------------------------------------------------ the proof


@pytest.fixture
def own_folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "place"
    folder.mkdir(mode=0o700)
    yield folder
    for path in folder.rglob("*"):
        if path.is_dir():
            path.chmod(0o700)


each_defence = pytest.mark.parametrize("defence", DEFENCES, ids=lambda defence: defence.name)


@each_defence
def test_the_checker_passes_as_long_as_the_defence_stands(defence, own_folder):
    defence.check(own_folder)


@each_defence
def test_the_checker_fails_when_the_defence_is_removed(defence, own_folder, monkeypatch):
    """Negative control: not by an error of the test itself, but because the checker notices."""
    defence.remove(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        defence.check(own_folder)


def test_every_function_of_the_seam_exists():
    assert all(callable(getattr(_files, name)) for name in SEAM)


def test_sealing_in_the_same_write_is_a_bug_that_only_an_exhaustive_test_finds():
    """The history of the design: 1 of about 200 cuts shows it, the whole line without its LF."""
    data = make_history(0, 4)
    failures = 0
    for cut in range(len(data) + 1):
        prefix = data[:cut]
        log = memory_log(prefix)
        before = Fold(prefix).chain
        medium: Any = log._medium
        medium.write = lambda text, end, medium=medium: seal_in_the_same_write(medium, text, end)
        log._fold_and_seal = log._fold  # type: ignore[method-assign]
        bodies = [state(nonce="after")] if before.next_position else [header(nonce="after")]
        log.append(bodies, expect=before.next_position)
        records = [body for _, _, body in Fold(bytes_of(log)).applied]
        failures += records[-1].get("nonce") != "after" if records else 1
    assert failures == Fold(data).chain.next_position


def test_the_choice_of_histories_is_random_but_the_same_in_every_run():
    assert make_history(7) == make_history(7)
    assert len({make_history(seed) for seed in range(20)}) == 20
    assert random.Random(5).random() == random.Random(5).random()
