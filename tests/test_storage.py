# SPDX-License-Identifier: Apache-2.0
"""Where persisted results live: what a folder refuses, how it writes, and what counts as private."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from microflow import _files, _storage
from microflow._storage import LocalFileSystem, MemoryStorage, as_storage, default_storage
from microflow.exceptions import NoSpace, StorageError
from microflow.settings import temporary_settings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(params=["folder", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return LocalFileSystem(tmp_path / "results") if request.param == "folder" else MemoryStorage()


def test_what_was_written_last_is_read(storage):
    for content in (b"one", b"", b"three" * 1000):
        storage.write_path("a", content)
        assert storage.read_path("a") == content


def test_what_is_not_there_is_a_value_error(storage):
    with pytest.raises(ValueError, match="does not exist"):
        storage.read_path("a")


def test_the_version_changes_with_each_write_and_is_none_without_content(storage):
    versions = [storage.version("a")]
    for _ in range(3):
        storage.write_path("a", b"same")
        versions.append(storage.version("a"))
    assert versions[0] is None
    assert len(set(versions)) == 4


# ------------------------------------------------------------------------------------------------ a folder


@pytest.mark.parametrize(
    "path", ["..", "../x", "a/../../x", "/etc/passwd", "", ".", "a/..", "x\0y", "../results-other/x", "~/../../x/../.."]
)
def test_paths_out_of_the_folder_are_refused(path, tmp_path):
    storage = LocalFileSystem(tmp_path / "results")
    for use in (storage.read_path, lambda each: storage.write_path(each, b"")):
        with pytest.raises(ValueError, match="is not inside of the result folder"):
            use(path)
    assert list(tmp_path.rglob("x")) == []


@pytest.mark.parametrize("path", ["a", "a/b/c", "a b.json", "..a", "a/../b", "ä"])
def test_paths_inside_may_be_nested_and_absolute(path, tmp_path):
    storage = LocalFileSystem(tmp_path)
    full = storage.write_path(path, b"content")
    assert full == os.path.normpath(tmp_path / path)
    assert storage.read_path(full) == storage.read_path(path) == b"content"


def test_files_and_folders_are_for_this_user_alone_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        LocalFileSystem(tmp_path / "deep" / "results").write_path("a/b", b"")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "deep").rglob("*")}
    assert modes == {"results": 0o700, "a": 0o700, "b": 0o600}


def test_a_folder_is_private_while_nobody_else_can_write_to_it(tmp_path):
    folder = tmp_path / "results"
    storage = LocalFileSystem(folder)
    assert storage.private
    folder.mkdir(mode=0o755)
    assert storage.private
    folder.chmod(0o777)
    assert not storage.private
    storage.write_path("a", b"1")  # it is used all the same
    link = LocalFileSystem(tmp_path / "link")
    (tmp_path / "link").symlink_to(folder)
    assert not link.private
    assert link.read_path("a") == b"1"


def test_a_file_that_is_a_link_or_has_two_names_is_not_read(tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    os.link(tmp_path / "secret", tmp_path / "second")
    for name in ("link", "second"):
        with pytest.raises(StorageError):
            LocalFileSystem(tmp_path).read_path(name)


def test_a_write_that_fails_leaves_what_was_there_and_no_litter(tmp_path, monkeypatch):
    storage = LocalFileSystem(tmp_path)
    storage.write_path("a", b"before")

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "no space left")

    for name, broken in (("write", full), ("write", lambda *_: 0), ("replace", lambda *_: full(0, b""))):
        with monkeypatch.context() as patch:
            patch.setattr(_files, name, broken)
            with pytest.raises(NoSpace):
                storage.write_path("a", b"after")
        assert storage.read_path("a") == b"before"
        assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["a"]


def test_a_write_that_falls_short_goes_on(tmp_path, monkeypatch):
    write = _files.write
    monkeypatch.setattr(_files, "write", lambda descriptor, data: write(descriptor, data[:2]))
    storage = LocalFileSystem(tmp_path)
    storage.write_path("a", b"content")
    assert storage.read_path("a") == b"content"


def test_with_durability_disk_the_file_is_synced_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ("sync_full", "replace", "sync_folder"):
        real = getattr(_files, name)
        monkeypatch.setattr(_files, name, lambda *args, name=name, real=real: (calls.append(name), real(*args)))
    LocalFileSystem(tmp_path).write_path("a", b"")
    assert calls == ["replace"]
    with temporary_settings(durability="disk"):
        LocalFileSystem(tmp_path).write_path("a", b"")
    assert calls == ["replace", "sync_full", "replace", "sync_folder"]


def test_a_path_that_cannot_be_written_is_a_storage_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file/below"):
        LocalFileSystem(tmp_path).write_path("file/below", b"")
    with pytest.raises(ValueError, match="does not exist"):
        LocalFileSystem(tmp_path).read_path("file/below")


# ------------------------------------------------------------------------------------------------ which one


def test_a_path_is_a_folder_and_a_storage_is_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "r", str(tmp_path / "r"), "r", "./r"):
        assert as_storage(path) == LocalFileSystem(tmp_path / "r")
    memory = MemoryStorage()
    assert as_storage(memory) is memory
    with pytest.raises(TypeError, match="read_path and write_path, not int: 5"):
        as_storage(5)


def test_the_default_is_in_the_home_or_where_the_setting_says(private_home, tmp_path):
    assert default_storage() == LocalFileSystem(private_home / "storage")
    with temporary_settings(local_storage_path=tmp_path / "elsewhere"):
        assert default_storage() == LocalFileSystem(tmp_path / "elsewhere")
    with temporary_settings(home=":memory:"):
        assert default_storage() is default_storage() is _storage._in_memory
