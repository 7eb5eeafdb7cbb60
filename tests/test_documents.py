# SPDX-License-Identifier: Apache-2.0
"""Small documents beside the logs: replaced as a whole, private, under ids and nothing else."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from microflow import _files
from microflow._documents import LARGEST, FileDocuments, MemoryDocuments
from microflow.exceptions import NoSpace, StorageError

from .log_support import OTHER, RUN


@pytest.fixture(params=["file", "disk", "memory"])
def documents(request, tmp_path):
    """Every kind: each test that takes it holds for all of them."""
    if request.param == "memory":
        return MemoryDocuments()
    return FileDocuments(str(tmp_path / "kept"), durable=request.param == "disk")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "kept"


def test_what_was_put_is_there_until_it_is_removed(documents):
    assert (documents.list(), documents.get(RUN)) == ([], None)
    documents.put(RUN, b"one")
    documents.put(OTHER, b"two")
    documents.put(RUN, b"three")
    assert (documents.list(), documents.get(RUN)) == (sorted([RUN, OTHER]), b"three")
    assert [documents.remove(RUN), documents.remove(RUN)] == [True, False]
    assert documents.list() == [OTHER]


@pytest.mark.parametrize("name", ["../x", "", RUN.upper(), RUN + ".json", None])
def test_no_name_from_outside_becomes_a_path(documents, name):
    for use in (documents.get, documents.remove, lambda name: documents.put(name, b"")):
        with pytest.raises(ValueError, match="no run id"):
            use(name)


def test_a_file_is_private_and_stands_alone(folder):
    FileDocuments(str(folder), durable=False).put(RUN, b"one")
    assert os.listdir(folder) == [f"{RUN}.json"]
    assert stat.S_IMODE((folder / f"{RUN}.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("failing", ["write", "replace", "sync_full"])
def test_a_write_that_fails_leaves_what_was_there(folder, monkeypatch, failing):
    documents = FileDocuments(str(folder), durable=True)
    documents.put(RUN, b"one")

    def refuse(*_):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(_files, failing, refuse)
        with pytest.raises(NoSpace):
            documents.put(RUN, b"two")
    assert documents.get(RUN) == b"one"
    assert os.listdir(folder) == [f"{RUN}.json"]


def test_a_write_that_falls_short_leaves_what_was_there(folder, monkeypatch):
    documents = FileDocuments(str(folder), durable=False)
    documents.put(RUN, b"one")
    whole = _files.write
    with monkeypatch.context() as patch:
        patch.setattr(_files, "write", lambda descriptor, data: whole(descriptor, data[:-1]))
        with pytest.raises(NoSpace, match="free space"):
            documents.put(RUN, b"two")
    assert documents.get(RUN) == b"one"
    assert os.listdir(folder) == [f"{RUN}.json"]


def test_no_more_than_a_document_may_have_is_read(folder):
    documents = FileDocuments(str(folder), durable=False)
    documents.put(RUN, b"x" * (2 * LARGEST))
    assert len(documents.get(RUN)) == LARGEST + 1


def test_a_folder_that_others_can_write_to_is_refused(folder):
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(StorageError, match="others may write"):
        FileDocuments(str(folder), durable=False).put(RUN, b"one")
