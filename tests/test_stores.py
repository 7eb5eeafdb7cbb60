# SPDX-License-Identifier: Apache-2.0
"""Stores: one test body for files and memory, then what only files have: permissions, results, owners, fork, follow."""

from __future__ import annotations

import errno
import os
import signal
import threading
import uuid
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest

from microflow import _files, stores
from microflow.examples.sqlite_store import SqliteStore
from microflow.exceptions import (
    Conflict,
    Fenced,
    IndeterminateAppend,
    MissingResult,
    NoSpace,
    ObjectNotFound,
    RecordTooLarge,
    SerializationError,
    StorageError,
)
from microflow.key_stores import KeyStore
from microflow.stores import FileStore, MemoryStore, Store

from .log_support import OTHER, RUN, TIME, Child, Fault, Fold, claim, header, state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from microflow.events import Record


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture(params=["file", "disk", "memory", "sqlite"])
def store(request, root, tmp_path) -> Iterator[Store]:
    """Every kind of store: each test below holds for all of them."""
    makers: dict[str, Callable[[], Store]] = {
        "file": lambda: FileStore(root),
        "disk": lambda: FileStore(root, "disk"),
        "memory": MemoryStore,
        "sqlite": lambda: SqliteStore(str(tmp_path / "sqlite")),
    }
    made = makers[request.param]()
    yield made
    for run_id in (RUN, OTHER):
        made.close(run_id)


@pytest.fixture
def files(root) -> Iterator[FileStore]:
    made = FileStore(root)
    yield made
    for run_id in list(made._logs):
        made.close(run_id)


def log_path(root: Path, run_id: str = RUN) -> Path:
    return root / "runs" / f"{run_id}.jsonl"


# ------------------------------------------------------------------------------------------------ every store


def test_a_run_is_created_appended_to_and_read(store):
    """L13; and the records of a transition come together."""
    assert store.append(RUN, [header(), claim(pid=1)], expect=0, epoch=1, time_us=TIME) == 1
    assert store.append(RUN, [state("A"), state("B")], expect=1, epoch=1) == 2
    store.sync(RUN, 2)
    reading = store.read(RUN)
    assert [(record.position, record.epoch, record.kind) for record in reading.records] == [
        (0, 1, "run"), (0, 1, "claim"), (1, 1, "state"), (1, 1, "state"),
    ]  # fmt: skip
    assert reading.records[0].time == TIME
    assert reading.records[0].run_id == RUN
    assert (reading.position, reading.epoch, reading.owner, reading.owner_pid, reading.problem) == (
        2,
        1,
        "a" * 32,
        1,
        None,
    )
    assert [record.data["to"] for record in store.read(RUN, 1).records] == ["A", "B"]
    assert store.read(RUN, 2).records == []
    assert reading.check() is reading


def test_a_closed_run_goes_on_where_it_was(store):
    store.append(RUN, [header()], expect=0)
    store.close(RUN)
    store.close(RUN)
    assert store.append(RUN, [state()], expect=1) == 2
    store.close(RUN)
    store.sync(RUN, 2)
    assert store.read(RUN).position == 2


def test_a_run_is_created_once(store):
    store.append(RUN, [header()], expect=0)
    with pytest.raises(Conflict):
        store.append(RUN, [header(nonce="1" * 32)], expect=0)
    assert store.read(RUN).position == 1


def test_whoever_comes_second_to_a_position_gets_a_conflict_and_who_lost_its_claim_is_fenced(store):
    """L3, L5, L6."""
    store.append(RUN, [header(), claim()], expect=0, epoch=1)
    store.append(RUN, [claim("b" * 32)], expect=1, epoch=2)
    with pytest.raises(Conflict):
        store.append(RUN, [claim("c" * 32)], expect=1, epoch=2)
    with pytest.raises(Fenced):
        store.append(RUN, [state()], expect=2, epoch=1)
    assert store.append(RUN, [state("REQUEST")], expect=2) == 3
    assert store.append(RUN, [{"k": "release"}], expect=3, epoch=2) == 4
    assert store.read(RUN).owner is None


def test_what_cannot_be_written_is_refused_before_anything_is(store):
    store.append(RUN, [header()], expect=0)
    with pytest.raises(SerializationError):
        store.append(RUN, [state(value=float("nan"))], expect=1)
    with pytest.raises(RecordTooLarge):
        store.append(RUN, [state(value="x" * (1 << 20))], expect=1)
    with pytest.raises(ValueError, match="kind"):
        store.append(RUN, [{"k": "unknown"}], expect=1)
    assert store.read(RUN).position == 1


def test_a_run_that_does_not_exist_is_not_found(store):
    for call in (
        lambda: store.read(RUN),
        lambda: store.append(RUN, [state()], expect=1),
        lambda: store.delete(RUN),
    ):
        with pytest.raises(ObjectNotFound, match=RUN):
            call()
    assert store.list() == []


@pytest.mark.parametrize(
    "run_id", ["", "x", "../../../../../../../../../etc/passwd", RUN.upper(), RUN + "/", RUN[:-1] + "\n", 7]
)
def test_no_name_from_outside_becomes_a_path(store, run_id, root):
    for call in (
        lambda: store.append(run_id, [header(run_id)], expect=0),
        lambda: store.read(run_id),
        lambda: store.delete(run_id),
        lambda: store.put_result(run_id, b""),
    ):
        with pytest.raises(ValueError, match="is no run id: a UUID in lower case"):
            call()
    assert not [path for path in root.rglob("*") if path.is_file()]


def test_runs_are_listed_in_order_and_found_by_the_start_of_their_id(store):
    for run_id in (OTHER, RUN):
        store.append(run_id, [header(run_id)], expect=0)
    assert store.list() == [RUN, OTHER]
    assert store.find(OTHER[:13]) == [OTHER]
    assert store.find("0198") == [RUN, OTHER]
    assert store.find("x") == []


def test_a_deleted_run_is_gone_with_its_results(store):
    store.append(RUN, [header()], expect=0)
    store.append(OTHER, [header(OTHER)], expect=0)
    names = [store.put_result(run_id, b"value") for run_id in (RUN, RUN, OTHER)]
    store.delete(RUN)
    assert store.list() == [OTHER]
    with pytest.raises(ObjectNotFound):
        store.read(RUN)
    with pytest.raises(MissingResult):
        store.get_result(RUN, names[0], 5)
    assert store.get_result(OTHER, names[2], 5) == b"value", "L20"
    assert store.append(RUN, [header()], expect=0) == 1


def test_a_result_is_named_by_what_it_holds_and_kept_once(store):
    """L12."""
    name = store.put_result(RUN, b"value")
    assert name == sha256(b"value").hexdigest() == store.put_result(RUN, b"value")
    assert store.get_result(RUN, name, 5) == b"value"
    empty = store.put_result(RUN, b"")
    assert store.get_result(RUN, empty, 0) == b""
    for wrong in ((name, 4), (name, 6), (sha256(b"other").hexdigest(), 5), ("../" + name, 5), ("", 0)):
        with pytest.raises(MissingResult, match=RUN):
            store.get_result(RUN, *wrong)


def test_a_process_has_one_token_as_long_as_it_owns_a_run(store):
    """3.6: drawn at the first claim; another one after the last run was given back."""
    token = store.own()
    assert len(token) == 32
    assert store.own() == token
    store.disown(token)
    assert store.is_alive(token)
    store.disown(token)
    assert not store.is_alive(token)
    store.disown(token)
    second = store.own()
    assert second != token
    store.disown(second)
    store.disown("f" * 32)
    assert not store.is_alive("f" * 32)
    assert not store.is_alive("../runs")


def test_a_store_is_private_unless_others_may_write_to_it(store):
    private = not isinstance(store, KeyStore)  # which cannot know, and is told by who derives from it
    assert store.private is private
    store.append(RUN, [header()], expect=0)
    assert store.private is private
    assert store.location in str(store.location)


def test_following_ends_with_its_block(store):
    with store.follow(RUN):
        pass
    assert not [thread for thread in threading.enumerate() if thread.name == "microflow follower"]


def test_nothing_is_published_of_what_this_store_appended(store):
    """The client does that, after it gave its mutex back."""
    seen: list[Record] = []
    store.bus.subscribe_log(RUN, seen.append)
    store.append(RUN, [header()], expect=0)
    with store.follow(RUN, 0):
        for position in range(1, 20):
            store.append(RUN, [state()], expect=position)
        threading.Event().wait(0.03)  # two looks of the follower, which must find nothing to say
    assert seen == []


def test_a_reader_and_a_writer_in_two_threads_do_not_disturb_each_other(store):
    store.append(RUN, [header()], expect=0)
    done = threading.Event()
    read: list[int] = []

    def reader() -> None:
        position = 0
        while not done.is_set() or position < 200:
            reading = store.read(RUN, position)
            assert [record.position for record in reading.records] == [*range(position, reading.position)]
            read.extend(record.position for record in reading.records)
            position = reading.position

    thread = threading.Thread(target=reader)
    thread.start()
    for position in range(1, 200):
        store.append(RUN, [state()], expect=position)
    done.set()
    thread.join()
    assert read == list(range(200))


def test_the_base_class_says_what_a_store_must_do():
    base = Store()
    missing: list[Any] = [
        lambda: base.private,
        lambda: base.append(RUN, [], expect=0),
        lambda: base.read(RUN),
        lambda: base.sync(RUN, 0),
        lambda: base.close(RUN),
        lambda: base.find(""),
        lambda: base.delete(RUN),
        lambda: base.put_result(RUN, b""),
        lambda: base.get_result(RUN, "", 0),
        base.own,
        lambda: base.disown(""),
        lambda: base.is_alive(""),
        lambda: base.follow(RUN),
        base._after_fork_in_child,
    ]
    for call in missing:
        with pytest.raises(NotImplementedError):
            call()


# ------------------------------------------------------------------------------------------------ the folder


def test_a_store_makes_nothing_before_it_is_needed(root):
    store = FileStore(root)
    assert store.list() == []
    assert not store.is_alive("f" * 32)
    with pytest.raises(ObjectNotFound):
        store.read(RUN)
    assert not root.exists()
    assert store.private
    with pytest.raises(ValueError, match="durability is 'process' or 'disk', not 'full'"):
        FileStore(root, "full")  # type: ignore[arg-type]


def test_all_files_are_for_us_alone(files, root):
    files.append(RUN, [header()], expect=0)
    name = files.put_result(RUN, b"value")
    token = files.own()
    made = {str(path.relative_to(root)): path.stat().st_mode & 0o777 for path in root.rglob("*")}
    assert made == {
        "runs": 0o700,
        f"runs/{RUN}.jsonl": 0o600,
        f"runs/{RUN}.results": 0o700,
        f"runs/{RUN}.results/{name}": 0o600,
        "owners": 0o700,
        f"owners/{token}": 0o600,
    }
    assert root.stat().st_mode & 0o777 == 0o700
    files.disown(token)
    assert not (root / "owners" / token).exists()


def test_a_store_that_others_may_write_to_or_whose_folder_is_a_link_is_not_private(files, root, tmp_path):
    files.append(RUN, [header()], expect=0)
    root.chmod(0o755)
    assert files.private
    root.chmod(0o770)
    assert not files.private
    root.chmod(0o700)
    os.symlink(root, tmp_path / "link")
    assert not FileStore(tmp_path / "link").private
    (tmp_path / "file").write_text("")
    assert not FileStore(tmp_path / "file" / "store").private


def test_a_runs_folder_that_others_may_write_to_is_refused(files, root):
    (root / "runs").mkdir(parents=True)
    (root / "runs").chmod(0o777)
    with pytest.raises(StorageError, match="runs: not a folder of ours"):
        files.append(RUN, [header()], expect=0)


def test_foreign_names_in_the_folder_are_not_runs(files, root):
    files.append(RUN, [header()], expect=0)
    for name in ("notes.txt", f"{RUN}.jsonl.bak", f"{OTHER}.JSONL", "x" * 36 + ".jsonl", f"{OTHER}.results"):
        (root / "runs" / name).write_text("")
    assert files.list() == [RUN]


def test_a_planted_link_or_second_name_is_refused_for_logs_and_results(files, root):
    files.append(RUN, [header()], expect=0)
    path = log_path(root)
    os.symlink(path, log_path(root, OTHER))
    with pytest.raises(StorageError):
        files.read(OTHER)
    name = files.put_result(RUN, b"value")
    os.link(root / "runs" / f"{RUN}.results" / name, root / "other")
    with pytest.raises(StorageError, match="second name"):
        files.get_result(RUN, name, 5)


def test_a_log_that_must_not_be_written_to_can_be_read(files, root):
    """A read-only disk, or a file that its owner protected."""
    files.append(RUN, [header()], expect=0)
    files.close(RUN)
    with pytest.MonkeyPatch.context() as patch:
        real = _files.open_log

        def open_log(path: str, *, writable: bool) -> int:
            if writable:
                raise PermissionError(errno.EACCES, "Permission denied")
            return real(path, writable=writable)

        patch.setattr(_files, "open_log", open_log)
        assert files.read(RUN).position == 1
        with pytest.raises(StorageError, match=r"\.jsonl: Permission denied") as refused:
            files.append(RUN, [state()], expect=1)
    assert isinstance(refused.value.__cause__, PermissionError)
    assert files.append(RUN, [state()], expect=1) == 2


def test_many_logs_are_kept_open_only_up_to_a_limit(files, monkeypatch):
    """Who only reads is forgotten; who appends keeps what it read, and only its file is closed."""
    monkeypatch.setattr(stores, "MOST_OPEN_LOGS", 4)
    ids = [str(uuid.UUID(int=number)) for number in range(20)]
    before = len(_files._descriptors)
    for run_id in ids:
        files.append(run_id, [header(run_id)], expect=0)
    assert len(files._logs) == 20
    assert len(_files._descriptors) - before <= 5
    chain = files._logs[ids[0]]._chain
    assert files.append(ids[0], [state()], expect=1) == 2
    assert files._logs[ids[0]]._chain is chain
    others = FileStore(files.location)
    for run_id in ids:
        assert others.read(run_id).position
    assert len(others._logs) <= 4
    for run_id in ids:
        others.close(run_id)


def test_a_run_that_is_closed_while_it_is_read_leaves_no_file_open(files, monkeypatch):
    files.append(RUN, [header()], expect=0)
    before = len(_files._descriptors)
    log = files._logs[RUN]
    real = type(log).read

    def read(self: Any, *args: Any, **kwargs: Any) -> Any:
        files.close(RUN)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(type(log), "read", read)
    assert files.read(RUN).position == 1
    assert len(_files._descriptors) == before - 1


def test_an_error_of_the_folder_is_a_storage_error_that_names_it(files, root, monkeypatch):
    files.append(RUN, [header()], expect=0)
    for name, call in (
        ("list_folder", files.list),
        ("unlink", lambda: files.delete(RUN)),
        ("open_log", lambda: files.is_alive("f" * 32)),
        ("open_new", files.own),
    ):
        with monkeypatch.context() as patch:
            Fault(patch, 1, errno.EIO, [name])
            with pytest.raises(StorageError, match=rf"{root}.*: Input/output error"):
                call()
    token = files.own()
    with monkeypatch.context() as patch:
        Fault(patch, 1, errno.EIO, ["unlink"])
        with pytest.raises(StorageError, match="owners: Input/output error"):
            files.disown(token)
    assert not files.is_alive(token), "its lock is gone all the same"
    Fault(monkeypatch, 1, errno.EIO, ["make_private_folder"])
    with pytest.raises(StorageError):
        files.append(OTHER, [header(OTHER)], expect=0)


# ------------------------------------------------------------------------------------------------ durability


def test_disk_syncs_the_log_its_folder_and_the_folders_above_and_process_syncs_nothing(root, monkeypatch):
    calls: list[str] = []
    for name in ("sync_data", "sync_full", "sync_folder"):
        real = getattr(_files, name)
        monkeypatch.setattr(
            _files, name, lambda what, name=name, real=real: (calls.append(f"{name} {what}"), real(what))[1]
        )
    durable = FileStore(root, "disk")
    durable.append(RUN, [header()], expect=0)
    assert calls == [f"sync_folder {root.parent}", f"sync_folder {root}"]
    del calls[:]
    durable.sync(RUN, 1)
    assert [call.split()[0] for call in calls] == ["sync_full", "sync_folder"]
    assert calls[1] == f"sync_folder {root / 'runs'}"
    durable.append(RUN, [state()], expect=1)
    durable.sync(RUN, 2)
    assert calls[2].startswith("sync_data ")
    durable.close(RUN)
    del calls[:]
    plain = FileStore(root)
    plain.append(RUN, [state()], expect=2)
    plain.sync(RUN, 3)
    plain.put_result(RUN, b"value")
    plain.close(RUN)
    assert calls == []


def test_a_result_is_on_the_disk_before_it_has_its_name(root, monkeypatch):
    """L12: synced, renamed, and the name synced."""
    calls: list[str] = []
    for name in ("write", "sync_full", "replace", "sync_folder"):
        real = getattr(_files, name)
        monkeypatch.setattr(_files, name, lambda *args, name=name, real=real: (calls.append(name), real(*args))[1])
    FileStore(root, "disk").put_result(RUN, b"value")
    assert calls == ["sync_folder"] * 3 + ["write", "sync_full", "replace", "sync_folder"]


@pytest.mark.parametrize("name", ["open_new", "write", "sync_full", "replace"])
def test_a_result_that_could_not_be_written_leaves_nothing(root, monkeypatch, name):
    store = FileStore(root, "disk")
    with monkeypatch.context() as patch:
        Fault(patch, 1, errno.ENOSPC, [name])
        with pytest.raises(NoSpace):
            store.put_result(RUN, b"value")
    results = root / "runs" / f"{RUN}.results"
    left = [path.name for path in results.iterdir()]
    assert left == [] or name == "replace"
    store.put_result(RUN, b"value")
    store.delete(RUN)
    assert not results.exists()


def test_a_result_that_was_written_in_part_is_no_result(root, monkeypatch):
    store = FileStore(root)
    with monkeypatch.context() as patch:
        patch.setattr(_files, "write", lambda descriptor, data: os.write(descriptor, data[:2]))
        with pytest.raises(NoSpace, match="only 2 of 5 bytes"):
            store.put_result(RUN, b"value")
    assert list((root / "runs" / f"{RUN}.results").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"vAlue", b"valu", b"value!"])
def test_a_result_that_changed_on_the_disk_is_missing(files, root, content):
    """L12: a wrong value is never handed out."""
    name = files.put_result(RUN, b"value")
    path = root / "runs" / f"{RUN}.results" / name
    path.write_bytes(content)
    with pytest.raises(MissingResult, match=f"{name} with a result of run {RUN} does not hold what"):
        files.get_result(RUN, name, 5)
    assert files.put_result(RUN, b"value") == name
    assert files.get_result(RUN, name, 5) == b"value", "putting it again heals it"


def test_a_poisoned_run_is_usable_again_after_it_was_closed(root, monkeypatch):
    """L19."""
    store = FileStore(root, "disk")
    store.append(RUN, [header()], expect=0)
    with monkeypatch.context() as patch:
        Fault(patch, 1, errno.EIO, ["sync_full"])
        with pytest.raises(IndeterminateAppend):
            store.sync(RUN, 1)
    with pytest.raises(IndeterminateAppend):
        store.append(RUN, [state()], expect=1)
    store.close(RUN)
    assert store.append(RUN, [state()], expect=1) == 2
    store.close(RUN)


# ------------------------------------------------------------------------------------------------ owners


def test_a_token_is_alive_for_others_as_long_as_its_process_owns_runs(files, root):
    other = FileStore(root)
    token = files.own()
    assert other.is_alive(token)
    files.own()
    files.disown(token)
    assert other.is_alive(token)
    files.disown(token)
    assert not other.is_alive(token)


def test_a_token_dies_with_its_process_however_it_ends(files):
    for end in ("kill", "exit"):

        def own(say: Any, end: str = end) -> None:
            say(FileStore(files.location).own())
            threading.Event().wait(60 if end == "kill" else 0.05)

        child = Child(own)
        token = child.read_line()
        assert files.is_alive(token)
        if end == "kill":
            child.signal(signal.SIGKILL)
        child.wait()
        assert not files.is_alive(token)


def test_files_of_dead_owners_are_swept_away_and_those_of_the_living_are_not(files, root):
    def own(say: Any) -> None:
        say(FileStore(root).own())
        threading.Event().wait(60)

    dead, living = Child(own), Child(own)
    dead_token, token = dead.read_line(), living.read_line()
    dead.kill()
    (root / "owners" / "notes").write_text("")
    ours = files.own()
    assert sorted(path.name for path in (root / "owners").iterdir()) == sorted([token, ours, "notes"])
    assert (files.is_alive(dead_token), files.is_alive(token)) == (False, True)
    files.disown(ours)
    living.kill()


def test_many_who_look_at_the_same_time_do_not_take_each_other_for_the_owner(files, root):
    (root / "owners").mkdir(parents=True)
    dead = "f" * 32
    (root / "owners" / dead).write_text("")
    (root / "owners" / dead).chmod(0o600)
    alive: list[bool] = []
    threads = [threading.Thread(target=lambda: alive.extend(files.is_alive(dead) for _ in range(50))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert alive == [False] * 200


@pytest.mark.parametrize("moment", ["locked", "removed"])
def test_an_owner_file_that_was_swept_before_it_was_locked_is_drawn_again(files, root, monkeypatch, moment):
    """Between its creation and its lock, a new owner looks like a dead one."""
    real, drawn = _files.open_new, []

    def open_new(path: str) -> int:
        descriptor = real(path)
        drawn.append(path)
        if len(drawn) == 1 and moment == "removed":
            os.unlink(path)
        if len(drawn) == 1 and moment == "locked":
            looking = _files.open_log(path, writable=False)
            assert _files.try_lock(looking, shared=True)
            held.append(looking)
        return descriptor

    held: list[int] = []
    monkeypatch.setattr(_files, "open_new", open_new)
    token = files.own()
    assert (len(drawn), os.path.basename(drawn[1])) == (2, token)
    assert not os.path.exists(drawn[0])
    assert FileStore(root).is_alive(token)
    files.disown(token)
    for descriptor in held:
        _files.close(descriptor)


def test_two_stores_in_one_process_have_owners_of_their_own(files, root):
    """24: so have two clones of one process, for tokens are drawn at the first claim."""
    other = FileStore(root)
    tokens = {files.own(), other.own()}
    assert len(tokens) == 2
    assert all(each.is_alive(token) for each in (files, other) for token in tokens)
    for each in (files, other):
        for token in tokens:
            each.disown(token)


# ------------------------------------------------------------------------------------------------ fork


def test_a_forked_child_has_no_part_in_its_parents_claim_and_can_use_the_store(files, root):
    """25: the parent's lock ends with the parent; the child draws a token and opens the logs anew."""
    token = files.own()
    files.append(RUN, [header(), claim(token)], expect=0, epoch=1)

    def work(say: Any) -> None:
        assert files._owners.token is None
        assert files.is_alive(token), "the parent lives"
        files.disown(token)
        assert files.is_alive(token), "and a child cannot disown for it"
        assert files.own() != token
        assert files.append(RUN, [state("BY THE CHILD")], expect=1) == 2
        say("done")
        threading.Event().wait(60)

    child = Child(work)
    assert child.read_line() == "done"
    assert files.append(RUN, [state("BY THE PARENT")], expect=2, epoch=1) == 3
    assert [record.data.get("to") for record in files.read(RUN, 1).records] == ["BY THE CHILD", "BY THE PARENT"]
    files.disown(token)
    assert not FileStore(root).is_alive(token), "the child keeps the parent's claim alive"
    child.kill()


def test_a_child_forked_during_an_append_of_another_thread_can_append(files, root, monkeypatch):
    """26: the mutexes of threads that the child does not have are not waited for, and no line is torn."""
    files.append(RUN, [header()], expect=0)
    inside, go = threading.Event(), threading.Event()
    real = _files.write

    def write(descriptor: int, data: bytes) -> int:
        inside.set()
        assert go.wait(10)
        return real(descriptor, data)

    monkeypatch.setattr(_files, "write", write)
    thread = threading.Thread(target=lambda: files.append(RUN, [state("PARENT")], expect=1))
    thread.start()
    assert inside.wait(10)

    def work(say: Any) -> None:
        _files.write = real
        say("ready")
        files.append(RUN, [state("CHILD")], expect=2)

    child = Child(work)
    assert child.read_line() == "ready"
    # the parent still holds the lock on the file: the child waits for it, then comes second
    go.set()
    thread.join()
    status, said = child.wait()
    assert (status, said) in ((0, []), (99, [text for text in said if "Conflict" in text]))
    fold = Fold(log_path(root).read_bytes())
    assert [body.get("to") for _, _, body in fold.applied][:2] == [None, "PARENT"]
    assert fold.chain.dead == fold.chain.orphans == 0


def test_a_forked_child_has_a_copy_of_the_memory_of_its_parent():
    store = MemoryStore()
    token = store.own()
    store.append(RUN, [header()], expect=0)

    def work(say: Any) -> None:
        assert not store.is_alive(token)
        say(str(store.append(RUN, [state()], expect=1)))

    child = Child(work)
    assert child.read_line() == "2"
    assert child.wait() == (0, [])
    assert store.read(RUN).position == 1


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_what_the_hook_in_a_child_does(root, kind, monkeypatch):
    """The same in this process, where coverage sees it: nothing of the parent is used again."""
    store: Any = FileStore(root) if kind == "file" else MemoryStore()
    store.append(RUN, [header()], expect=0)
    store.close(RUN)
    token = store.own()
    store._mutex.acquire()
    monkeypatch.setattr(stores, "_stores", {store})
    # the hook of _files closes the parent's file; the lock lives in the process that goes on
    parents = [store._owners.descriptor, _files.duplicate(store._owners.descriptor)] if kind == "file" else []
    stores._after_fork_in_child()
    assert store.read(RUN).position == 1
    child = store.own()
    assert child != token
    store.disown(child)
    for each in parents:
        _files.close(each)
    store.close(RUN)


def test_the_package_works_where_there_is_no_fork():
    import importlib.util

    spec = importlib.util.find_spec("microflow.stores")
    assert spec is not None
    assert spec.loader is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(os, "register_at_fork")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    assert module.MemoryStore().private
