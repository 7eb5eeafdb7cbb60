# SPDX-License-Identifier: Apache-2.0
"""The follower: what other processes append reaches the bus, once, and so does the death of an owner."""

from __future__ import annotations

import errno
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from microflow import _follower
from microflow.stores import FileStore, Store

from .log_support import OTHER, RUN, Child, Fault, chained, claim, header, state, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from microflow.events import Record


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def files(root) -> Iterator[FileStore]:
    made = FileStore(root)
    yield made
    for run_id in list(made._logs):
        made.close(run_id)


def log_path(root: Path, run_id: str = RUN) -> Path:
    return root / "runs" / f"{run_id}.jsonl"


class Seen:
    """What the bus of a store delivered."""

    def __init__(self, store: Store, run_id: str = RUN) -> None:
        self.records: list[Record] = []
        self.threads: set[str] = set()
        store.bus.subscribe_log(run_id, self.take)

    def take(self, record: Record) -> None:
        self.records.append(record)
        self.threads.add(threading.current_thread().name)

    def kinds(self) -> list[str]:
        return [record.kind for record in self.records]


def test_what_others_append_is_published_once_and_in_order(files, root):
    other = FileStore(root)
    other.append(RUN, [header()], expect=0)
    position = files.read(RUN).position
    other.append(RUN, [state("BEFORE")], expect=1)
    seen = Seen(files)
    with files.follow(RUN, position):
        until(lambda: len(seen.records) == 1)
        position = 2
        for number in range(10):
            position = other.append(RUN, [state(f"{number}"), state("+")], expect=position)
            position = files.append(RUN, [state("OURS")], expect=position)
        until(lambda: len(seen.records) >= 21)
    assert [record.data["to"] for record in seen.records] == [
        "BEFORE",
        *(to for n in range(10) for to in (f"{n}", "+")),
    ]
    assert seen.threads == {"microflow follower"}
    assert [record for record in files.read(RUN, 1).records if record.data["to"] != "OURS"] == seen.records
    other.close(RUN)


def test_a_run_may_be_followed_before_it_is_created(files, root):
    other, seen = FileStore(root), Seen(files)
    with files.follow(RUN):
        with files.follow(OTHER):
            other.append(RUN, [header()], expect=0)
            until(lambda: seen.kinds() == ["run"])
    other.close(RUN)


def test_there_is_one_thread_while_anybody_follows_and_none_after(files):
    def alive() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "microflow follower"]

    assert alive() == []
    with files.follow(RUN):
        with files.follow(RUN), files.follow(OTHER):
            assert len(alive()) == 1
            assert not alive()[0].daemon
        assert len(alive()) == 1
    assert alive() == []


def test_who_follows_from_further_back_gets_what_it_missed(files, root):
    other, seen = FileStore(root), Seen(files)
    other.append(RUN, [header()], expect=0)
    other.append(RUN, [state("A")], expect=1)
    with files.follow(RUN, 2):
        other.append(RUN, [state("B")], expect=2)
        until(lambda: seen.kinds() == ["state"])
        with files.follow(RUN, 0):
            until(lambda: [record.position for record in seen.records] == [2, 0, 1, 2])
    other.close(RUN)


def test_one_who_comes_while_the_log_is_read_is_served_as_well(files, root, monkeypatch):
    other, seen = FileStore(root), Seen(files)
    other.append(RUN, [header()], expect=0)
    real, second = files._follower._read, []

    def read(run_id: str, position: int) -> Any:
        reading = real(run_id, position)
        if position == 1 and reading.records and not second:
            second.append(files.follow(RUN, 0))
            second[0].__enter__()
        return reading

    monkeypatch.setattr(files._follower, "_read", read)
    with files.follow(RUN, 1):
        other.append(RUN, [state()], expect=1)
        until(lambda: seen.kinds() == ["state", "run", "state"])
        second[0].__exit__()
    other.close(RUN)


def test_a_subscriber_may_leave_from_the_thread_of_the_follower(files, root):
    other = FileStore(root)
    other.append(RUN, [header()], expect=0)
    left = threading.Event()
    following = files.follow(RUN, 0)

    def leave(_: Record) -> None:
        following.__exit__(None, None, None)
        left.set()

    files.bus.subscribe_log(RUN, leave)
    following.__enter__()
    assert left.wait(10)
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "microflow follower"])
    other.close(RUN)


def test_looks_are_1_to_10_ms_apart_and_the_last_one_is_not_waited_for(files, monkeypatch):
    """I10, 9: at most 10 ms until a foreign append is noticed; a follower that leaves does not wait for a pause."""
    pauses: list[float] = []
    enough = threading.Event()

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if timeout is None:  # how a thread waits for its start
                return super().wait()
            pauses.append(timeout)
            if len(pauses) > 12:
                enough.set()
                return super().wait(10)
            return self.is_set()

    monkeypatch.setattr(_follower.threading, "Event", Stop)
    start = time.monotonic()
    with files.follow(RUN):
        until(enough.is_set)
    assert time.monotonic() - start < 5
    assert pauses[0] == 0.001
    assert pauses[1:12] == sorted(pauses[1:12])
    assert pauses[-1] == 0.010


@pytest.fixture
def quick_checks(monkeypatch):
    monkeypatch.setattr(_follower, "OWNER_CHECK", 0.02)


def test_the_death_of_an_owner_is_published_once(files, quick_checks):
    """I12: by a process that was killed, at the end of its log."""

    def own(say: Any) -> None:
        store = FileStore(files.location)
        token = store.own()
        store.append(RUN, [header(), claim(token)], expect=0, epoch=1)
        store.append(RUN, [state("LAST WORDS")], expect=1, epoch=1)
        say(token)
        threading.Event().wait(60)

    child, seen = Child(own), Seen(files)
    token = child.read_line()
    with files.follow(RUN, 0):
        until(lambda: len(seen.records) == 3)
        threading.Event().wait(0.06)  # three looks at a living owner
        assert len(seen.records) == 3
        child.kill()
        until(lambda: "orphaned" in seen.kinds())
        threading.Event().wait(0.06)
    assert seen.kinds() == ["run", "claim", "state", "orphaned"]
    last = seen.records[-1]
    assert (last.data, last.position, last.epoch) == ({"owner": token}, 2, None)


def test_an_owner_that_released_its_run_and_ended_is_no_orphan(files, quick_checks, root, monkeypatch):
    """Its last words are read after it was found dead, not before."""
    other, seen = FileStore(root), Seen(files)
    token = other.own()
    other.append(RUN, [header(), claim(token)], expect=0, epoch=1)
    real = files._follower._is_alive

    def is_alive(asked: str) -> bool:
        # the owner ends between two looks: after its log was read, before it is asked for
        if len(seen.records) == 2:
            other.append(RUN, [state("DONE"), {"k": "release"}], expect=1, epoch=1)
            other.disown(token)
        return real(asked)

    monkeypatch.setattr(files._follower, "_is_alive", is_alive)
    with files.follow(RUN, 0):
        until(lambda: len(seen.records) == 4)
        threading.Event().wait(0.06)
    assert seen.kinds() == ["run", "claim", "state", "release"]
    other.close(RUN)


@pytest.mark.parametrize("fate", ["deleted", "damaged", "unreadable"])
def test_those_who_wait_are_told_once_that_a_log_cannot_be_read_any_more(files, root, fate, monkeypatch):
    other, seen = FileStore(root), Seen(files)
    _, _, third = chained([header()], [state("A")], [state("B")])
    other.append(RUN, [header()], expect=0)
    with files.follow(RUN, 0):
        until(lambda: len(seen.records) == 1)
        if fate == "deleted":
            other.delete(RUN)
        elif fate == "damaged":
            with log_path(root).open("ab") as file:
                file.write(third)
        else:
            Fault(monkeypatch, 1, errno.EIO, ["stat_path"])
        until(lambda: len(seen.records) == 2)
        if fate == "damaged":
            with log_path(root).open("ab") as file:
                file.write(b"more\n")
        threading.Event().wait(0.03)
    assert seen.kinds() == ["run", "unreadable"]
    expected = {"deleted": "ObjectNotFound", "damaged": "DamagedLog", "unreadable": "OSError"}[fate]
    assert seen.records[1].data["error"].startswith(expected)


def test_whatever_a_store_raises_others_are_heard_of_and_it_is_told_again_when_it_comes_again(files, root, monkeypatch):
    """A store of the user's may raise anything."""
    other, seen, of_other = FileStore(root), Seen(files), Seen(files, OTHER)
    broken = threading.Event()
    real = files._follower._size

    def size(run_id: str) -> int:
        if run_id == RUN and broken.is_set():
            raise KeyError("what a store raised")
        return real(run_id)

    monkeypatch.setattr(files._follower, "_size", size)
    other.append(RUN, [header()], expect=0)
    with files.follow(RUN, 0), files.follow(OTHER, 0):
        until(lambda: seen.kinds() == ["run"])
        broken.set()
        until(lambda: seen.kinds() == ["run", "unreadable"])
        other.append(OTHER, [header(OTHER)], expect=0)
        until(lambda: of_other.kinds() == ["run"])
        broken.clear()
        other.append(RUN, [state()], expect=1)
        until(lambda: seen.kinds() == ["run", "unreadable", "state"])
        broken.set()
        until(lambda: seen.kinds() == ["run", "unreadable", "state", "unreadable"])
    assert seen.records[1].data["error"] == "KeyError: 'what a store raised'"
    other.close(RUN)
    other.close(OTHER)


@pytest.mark.parametrize("second_from", [0, 1])
def test_who_comes_when_the_log_is_gone_is_told_as_well(files, root, second_from):
    """From whatever position he wants to hear."""
    other, seen = FileStore(root), Seen(files)
    other.append(RUN, [header()], expect=0)
    with files.follow(RUN, 1):
        other.delete(RUN)
        until(lambda: seen.kinds() == ["unreadable"])
        with files.follow(RUN, second_from):
            until(lambda: seen.kinds() == ["unreadable"] * 2)


def test_a_system_that_cannot_start_threads_says_so_and_nothing_is_half_followed(files, monkeypatch):
    """Pyodide."""

    def fail(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError), files.follow(RUN):
            pass
    with files.follow(RUN):
        pass
