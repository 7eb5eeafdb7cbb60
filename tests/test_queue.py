# SPDX-License-Identifier: Apache-2.0
"""The queue: which runs wait to be claimed, in files and in memory."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from microflow import _files
from microflow._queue import FileQueue, MemoryQueue
from microflow.exceptions import NoSpace, StorageError

from .log_support import OTHER, RUN


@pytest.fixture(params=["file", "disk", "memory"])
def queue(request, tmp_path):
    """Every kind of queue: each test that takes it holds for all of them."""
    if request.param == "memory":
        return MemoryQueue()
    return FileQueue(str(tmp_path / "queue"), durable=request.param == "disk")


def test_what_was_put_is_listed_until_it_is_taken(queue):
    assert queue.list() == []
    queue.put(RUN)
    queue.put(OTHER)
    assert set(queue.list()) == {RUN, OTHER}
    assert queue.take(RUN) is True
    assert queue.take(RUN) is False
    assert queue.list() == [OTHER]


def test_the_longest_waiting_comes_first_whatever_its_id(queue, tmp_path):
    first, second = sorted([RUN, OTHER], reverse=True)
    queue.put(first)
    if isinstance(queue, FileQueue):  # clocks of file systems may be coarse
        os.utime(tmp_path / "queue" / first, ns=(0, 1))
    queue.put(second)
    queue.put(first)
    assert queue.list() == [first, second]


@pytest.mark.parametrize("name", ["../x", "", RUN.upper(), RUN + ".jsonl", None])
def test_no_name_from_outside_becomes_a_path(queue, name):
    for use in (queue.put, queue.take):
        with pytest.raises(ValueError, match="no run id"):
            use(name)


def test_two_queues_over_one_folder_see_the_same_and_each_entry_is_taken_once(tmp_path):
    one, other = (FileQueue(str(tmp_path / "queue"), durable=False) for _ in range(2))
    one.put(RUN)
    assert other.list() == [RUN]
    assert [one.take(RUN), other.take(RUN)] == [True, False]


def test_entries_are_empty_files_for_us_alone_and_foreign_names_are_no_entries(tmp_path):
    queue = FileQueue(str(tmp_path / "queue"), durable=False)
    assert not (tmp_path / "queue").exists()
    queue.put(RUN)
    (tmp_path / "queue" / "notes.txt").write_text("hello")
    assert queue.list() == [RUN]
    entry = (tmp_path / "queue" / RUN).stat()
    assert (entry.st_size, stat.S_IMODE(entry.st_mode)) == (0, 0o600)
    assert stat.S_IMODE((tmp_path / "queue").stat().st_mode) == 0o700


def test_an_error_of_the_system_is_a_storage_error_that_names_the_place(tmp_path, monkeypatch):
    queue = FileQueue(str(tmp_path / "queue"), durable=False)

    def refuse(error):
        def raise_it(*args, **kwargs):
            raise OSError(error, os.strerror(error))

        return raise_it

    monkeypatch.setattr(_files, "open_new", refuse(errno.ENOSPC))
    with pytest.raises(NoSpace, match=RUN):
        queue.put(RUN)
    monkeypatch.setattr(_files, "unlink", refuse(errno.EACCES))
    with pytest.raises(StorageError, match=RUN):
        queue.take(RUN)
    monkeypatch.setattr(_files, "list_folder", refuse(errno.EACCES))
    with pytest.raises(StorageError, match="queue"):
        queue.list()


def test_with_disk_an_entry_is_on_the_disk_when_put_returns(tmp_path, monkeypatch):
    synced: list[str] = []
    sync = _files.sync_folder
    monkeypatch.setattr(_files, "sync_folder", lambda path: (synced.append(path), sync(path)))
    FileQueue(str(tmp_path / "queue"), durable=True).put(RUN)
    assert str(tmp_path / "queue") in synced


def test_an_entry_that_is_taken_while_it_is_listed_does_no_harm(tmp_path, monkeypatch):
    queue = FileQueue(str(tmp_path / "queue"), durable=False)
    queue.put(RUN)
    monkeypatch.setattr(_files, "list_folder", lambda path: [RUN, OTHER])
    assert set(queue.list()) == {RUN, OTHER}
