# SPDX-License-Identifier: Apache-2.0
"""The seam to the operating system: permissions, what is refused, locks, sync, and what a forked child holds."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
import types
from typing import TYPE_CHECKING

import pytest

from microflow import _files

from .log_support import Child

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "file")


@pytest.fixture
def opened(path: str) -> Iterator[int]:
    descriptor = _files.open_new(path)
    yield descriptor
    _files.close(descriptor)


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o277)
    yield
    os.umask(before)


def mode(path: object) -> int:
    return stat.S_IMODE(os.stat(str(path)).st_mode)


# ------------------------------------------------------------------------------------ open


def test_files_are_0600_and_folders_0700_whatever_the_umask_is(tmp_path, umask):
    _files.close(_files.open_new(str(tmp_path / "file")))
    os.umask(0o777)
    deep = tmp_path / "a" / "b" / "c"
    os.umask(0o077)
    _files.make_private_folder(str(deep))
    assert mode(tmp_path / "file") == 0o600
    assert [mode(folder) for folder in (deep, deep.parent, deep.parent.parent)] == [0o700] * 3


def test_a_new_file_never_replaces_one_that_is_there(path, opened):
    with pytest.raises(FileExistsError):
        _files.open_new(path)


def test_a_new_file_on_a_system_without_fchmod(path, monkeypatch):
    monkeypatch.delattr(os, "fchmod")
    _files.close(_files.open_new(path))
    assert mode(path) == 0o600


def test_a_file_that_cannot_be_given_its_mode_is_closed_again(path, monkeypatch):
    def fail(descriptor: int, mode: int) -> None:
        raise OSError(errno.EIO, "I/O error")

    before = set(_files._descriptors)
    monkeypatch.setattr(os, "fchmod", fail)
    with pytest.raises(OSError, match="I/O error"):
        _files.open_new(path)
    assert _files._descriptors == before


@pytest.mark.parametrize("writable", [False, True])
def test_a_link_is_not_followed(tmp_path, path, opened, writable):
    os.symlink(path, tmp_path / "link")
    with pytest.raises(OSError) as refused:
        _files.open_log(str(tmp_path / "link"), writable=writable)
    assert refused.value.errno == errno.ELOOP


@pytest.mark.parametrize("writable", [False, True])
def test_a_planted_fifo_is_refused_at_once(tmp_path, writable):
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(PermissionError, match="not a regular file"):
        _files.open_log(str(tmp_path / "fifo"), writable=writable)


def test_a_file_with_a_second_name_is_refused(tmp_path, path, opened):
    os.link(path, tmp_path / "other")
    with pytest.raises(PermissionError, match="second name"):
        _files.open_log(path, writable=True)


def test_a_file_of_another_user_is_refused(path, opened, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(PermissionError, match="another user"):
        _files.open_log(path, writable=True)


def test_a_file_removed_while_it_is_opened_is_not_there(path, opened, monkeypatch):
    real = os.open

    def open_and_lose(path: str, flags: int, mode: int = 0o777) -> int:
        descriptor = real(path, flags, mode)
        os.unlink(path)
        return descriptor

    monkeypatch.setattr(os, "open", open_and_lose)
    with pytest.raises(FileNotFoundError):
        _files.open_log(path, writable=False)


def test_a_system_without_users_has_only_one(path, opened, monkeypatch):
    monkeypatch.delattr(os, "geteuid")
    _files.close(_files.open_log(path, writable=False))


def test_a_close_that_fails_has_closed_but_a_second_close_is_a_mistake(path, monkeypatch):
    descriptor = _files.open_new(path)
    real = os.close

    def fail(descriptor: int) -> None:
        real(descriptor)
        raise OSError(errno.EIO, "I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", fail)
        _files.close(descriptor)
    assert descriptor not in _files._descriptors
    with pytest.raises(OSError) as refused:
        _files.close(descriptor)
    assert refused.value.errno == errno.EBADF


# ------------------------------------------------------------------------------------ read and write


def test_a_write_appends_and_a_read_says_what_stands_where(opened, path):
    assert (_files.write(opened, b"0123"), _files.write(opened, b"4567")) == (4, 4)
    assert _files.read_at(opened, 100, 2) == b"234567"
    assert (_files.size(opened), _files.stat_open(opened).st_size, _files.stat_path(path).st_size) == (8, 8, 8)
    _files.truncate(opened, 4)
    assert _files.write(opened, b"ab") == 2
    assert _files.read_at(opened, 100, 0) == b"0123ab"


def test_reading_works_where_there_is_no_pread(opened, monkeypatch):
    _files.write(opened, b"0123456")
    monkeypatch.delattr(os, "pread")
    assert _files.read_at(opened, 3, 2) == b"234"
    assert _files.write(opened, b"7") == 1
    assert _files.read_at(opened, 100, 6) == b"67"


def test_names_are_replaced_listed_and_removed(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    _files.replace(str(tmp_path / "a"), str(tmp_path / "b"))
    assert [name for name in _files.list_folder(str(tmp_path)) if name != "home"] == ["b"]
    assert (tmp_path / "b").read_text() == "a"
    _files.unlink(str(tmp_path / "b"))
    (tmp_path / "empty").mkdir()
    _files.remove_folder(str(tmp_path / "empty"))
    assert _files.list_folder(str(tmp_path)) == ["home"]
    assert _files.list_folder(str(tmp_path / "absent")) == []


# ------------------------------------------------------------------------------------ folders


def test_a_folder_that_others_may_write_to_is_refused(tmp_path):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o770)
    with pytest.raises(PermissionError, match="others may write"):
        _files.make_private_folder(str(folder))
    assert not _files.is_private_folder(str(folder))
    folder.chmod(0o755)
    _files.make_private_folder(str(folder))
    assert _files.is_private_folder(str(folder))


def test_a_link_in_the_place_of_a_folder_is_refused(tmp_path):
    os.symlink(tmp_path, tmp_path / "link")
    with pytest.raises(PermissionError, match="not a folder of ours"):
        _files.make_private_folder(str(tmp_path / "link"))


def test_a_durable_folder_has_its_name_synced_at_each_level(tmp_path, monkeypatch):
    synced: list[str] = []
    monkeypatch.setattr(_files, "sync_folder", synced.append)
    _files.make_private_folder(str(tmp_path / "a" / "b"), durable=True)
    _files.make_private_folder(str(tmp_path / "a" / "b"), durable=True)
    assert synced == [str(tmp_path), str(tmp_path / "a")]


# ------------------------------------------------------------------------------------ sync


def test_each_kind_of_sync_reaches_the_system(opened, tmp_path, monkeypatch):
    calls: list[str] = []
    for name in ("fsync", "fdatasync"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda d, name=name, real=real: (calls.append(name), real(d)))
    _files.sync_data(opened)
    _files.sync_full(opened)
    _files.sync_folder(str(tmp_path))
    assert calls == ["fdatasync", "fsync", "fsync"]


def test_a_system_that_cannot_open_folders_does_not_sync_them(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_DIRECTORY")
    _files.sync_folder(str(tmp_path / "absent"))


class FullSync(types.SimpleNamespace):
    """A fcntl module as macOS has it."""

    F_FULLFSYNC = 51

    def __init__(self, code: int = 0) -> None:
        super().__init__(asked=0, code=code)

    def fcntl(self, descriptor: int, operation: int) -> None:
        self.asked += 1
        if self.code:
            raise OSError(self.code, os.strerror(self.code))


def test_macos_is_asked_to_flush_the_drive(opened, monkeypatch):
    module = FullSync()
    monkeypatch.setattr(_files, "fcntl", module)
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("fsync stops at the drive's cache"))
    _files.sync_full(opened)
    assert module.asked == 1


def test_fsync_is_asked_only_when_the_full_flush_does_not_exist(opened, monkeypatch):
    """L19: a full flush that failed is not asked again in other words; the answer would be a false "done"."""
    asked: list[int] = []
    monkeypatch.setattr(os, "fsync", asked.append)
    monkeypatch.setattr(_files, "fcntl", FullSync(errno.ENOTSUP))
    _files.sync_full(opened)
    assert asked == [opened]
    monkeypatch.setattr(_files, "fcntl", FullSync(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        _files.sync_full(opened)
    assert asked == [opened]


# ------------------------------------------------------------------------------------ locks


@pytest.fixture
def twice(path: str) -> Iterator[tuple[int, int]]:
    """One file, opened twice: as two processes would, or two stores in one process."""
    first = _files.open_new(path)
    second = _files.open_log(path, writable=True)
    yield first, second
    _files.close(first)
    _files.close(second)


def test_two_openings_of_a_file_exclude_each_other(twice):
    first, second = twice
    assert _files.try_lock(first)
    assert not _files.try_lock(second)
    _files.unlock(first)
    assert _files.try_lock(second)


def test_a_lock_outlives_an_open_and_close_of_the_same_file_elsewhere(twice, path):
    """What lockf does not do."""
    first, second = twice
    _files.lock(first)
    with open(path) as file:
        file.read()
    assert not _files.try_lock(second)


def test_those_who_look_do_not_exclude_each_other_but_the_owner_excludes_them(twice):
    first, second = twice
    assert _files.try_lock(first, shared=True)
    assert _files.try_lock(second, shared=True)
    assert not _files.try_lock(second)
    _files.unlock(second)
    assert _files.try_lock(first)
    assert not _files.try_lock(second, shared=True)


def test_a_lock_is_waited_for(twice):
    first, second = twice
    _files.lock(first)
    waiting = threading.Thread(target=_files.lock, args=(second,))
    waiting.start()
    _files.unlock(first)
    waiting.join(10)
    assert not _files.try_lock(first)


def test_patience_ends_with_a_timeout(twice, monkeypatch):
    """The pauses grow from 0.5 to 50 ms and end at the deadline; time stands still but for them."""
    first, second = twice
    now, pauses = [0.0], []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(_files.time, "monotonic", lambda: 1.0 + now[0])
    monkeypatch.setattr(_files.time, "sleep", sleep)
    _files.lock(first)
    with pytest.raises(TimeoutError):
        _files.lock(second, 1.0)
    assert now[0] == pytest.approx(1.0)
    assert pauses[0] < 0.001
    assert 0.025 < max(pauses) <= 0.05
    assert len(pauses) > 15
    with pytest.raises(TimeoutError):
        _files.lock(second)
    assert now[0] == pytest.approx(1.0 + _files.PATIENCE)


def test_without_fcntl_a_lock_is_always_granted(twice, monkeypatch):
    monkeypatch.setattr(_files, "fcntl", None)
    assert all(_files.try_lock(each) for each in twice)
    for each in twice:
        _files.unlock(each)
        _files.sync_full(each)


def test_a_duplicate_shares_the_lock_and_keeps_it_until_both_are_closed(path):
    first = _files.open_new(path)
    assert _files.try_lock(first)
    second = _files.duplicate(first)
    other = _files.open_log(path, writable=True)
    _files.close(first)
    assert not _files.try_lock(other)
    _files.close(second)
    assert _files.try_lock(other)
    _files.close(other)


# ------------------------------------------------------------------------------------ fork


def test_a_forked_child_holds_no_lock_of_its_parent(path):
    first = _files.open_new(path)
    assert _files.try_lock(first)

    def linger(say) -> None:
        try:
            os.fstat(first)
            say("open")
        except OSError:
            say("closed")
        threading.Event().wait(60)

    child = Child(linger)
    assert child.read_line() == "closed"
    _files.close(first)  # never unlocked: as if the parent had died
    other = _files.open_log(path, writable=True)
    assert _files.try_lock(other), "the child keeps the lock alive"
    _files.close(other)
    child.kill()


def test_the_child_closes_what_was_open_and_starts_with_a_free_mutex(path, monkeypatch):
    """In this process: what the hook in the child does. A descriptor that is gone already does no harm."""
    descriptor = _files.open_new(path)
    _files._descriptors.discard(descriptor)
    monkeypatch.setattr(_files, "_descriptors", {descriptor, 1 << 20})
    monkeypatch.setattr(_files, "_mutex", _files._mutex)
    _files._before_fork()
    held = _files._mutex
    _files._after_fork_in_child()
    assert _files._mutex is not held
    assert _files._descriptors == set()
    with pytest.raises(OSError):
        fcntl.fcntl(descriptor, fcntl.F_GETFD)
    held.release()


def test_a_fork_waits_until_no_file_is_half_opened(path):
    """A file is open and entered in the set of open files, or neither, when a child is born."""
    with _files._mutex:
        forking = threading.Thread(target=_files._before_fork)
        forking.start()
        forking.join(0.05)
        assert forking.is_alive()
    forking.join(10)
    assert not _files._mutex.acquire(blocking=False)
    _files._mutex = threading.RLock()  # the thread that holds the old one has ended


def test_a_fork_gives_the_mutex_back_to_the_parent():
    _files._before_fork()
    _files._after_fork_in_parent()
    taken: list[bool] = []
    thread = threading.Thread(target=lambda: taken.append(_files._mutex.acquire(blocking=False)))
    thread.start()
    thread.join()
    assert taken == [True]
    _files._mutex = threading.RLock()


def test_the_package_works_on_a_system_without_fork_and_locks():
    """Pyodide and Windows: the module loads, and grants every lock."""
    import importlib.util
    import sys

    spec = importlib.util.find_spec("microflow._files")
    assert spec is not None
    assert spec.loader is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "fcntl", None)
        patch.delattr(os, "register_at_fork")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    assert module.fcntl is None
    assert module.try_lock(0)
