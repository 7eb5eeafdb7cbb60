# SPDX-License-Identifier: Apache-2.0
"""Where persisted results live: a folder of files, or this process. Bytes under a path; nothing here knows a record.

A storage has ``read_path(path) -> bytes`` (ValueError when there is nothing) and ``write_path(path, content)``. That
is all that is asked of one that a user brings; its methods may be coroutine functions. What else ours have:
``private`` says whether nobody but this user can have written what is read, so that pickles may be opened;
``version(path)`` tells one content of a path from the next, so that what was read once can be kept in memory.

A file is written under another name and renamed: a reader sees the old content or the new, never a part. With
durability ``disk`` it is synced before it has its name.
"""

from __future__ import annotations

import os
import stat as modes
from typing import Any, Protocol

from . import _files
from ._forks import new_lock
from ._media import FileMedium, storage_error
from .exceptions import NoSpace
from .settings import MEMORY, current_settings, resolve_home


class Storage(Protocol):
    """What is asked of a storage."""

    def read_path(self, path: str) -> Any:
        """The bytes under a path; ValueError when there is nothing."""

    def write_path(self, path: str, content: bytes) -> Any:
        """Put `content` under a path, in place of what is there."""


class LocalFileSystem:
    """A folder of results. Paths are relative to it, or absolute inside of it; ValueError for any other.

    The folder is made 0700 when something is first written, and files are 0600. One that exists already may have any
    mode, but while others can write to it (``private``), no pickle is opened from it."""

    def __init__(self, basepath: str | os.PathLike[str]) -> None:
        self.basepath = os.path.abspath(os.path.expanduser(os.fspath(basepath)))

    def _resolve_path(self, path: str) -> str:
        """The file that a path names. Refused is what leads out of the folder, however it is written."""
        full = os.path.normpath(os.path.join(self.basepath, path)) if path and "\0" not in path else ""
        if not full.startswith(os.path.join(self.basepath, "")):
            raise ValueError(f"the path {path!r} is not inside of the result folder {self.basepath}")
        return full

    @property
    def private(self) -> bool:
        """Whether only this user can have written the files."""
        try:
            return _files.is_private_folder(self.basepath)
        except FileNotFoundError:
            return True  # it will be made 0700
        except OSError:
            return False

    def version(self, path: str) -> object:
        """What changes when the file is written anew; None when there is no such file."""
        try:
            info = _files.stat_path(self._resolve_path(path))
        except OSError:
            return None
        return info.st_mtime_ns, info.st_size, info.st_ino

    def read_path(self, path: str) -> bytes:
        """The content of a file. ValueError if there is no such file, StorageError if it cannot be read."""
        full = self._resolve_path(path)
        medium = FileMedium(full)
        try:
            medium.ready(writable=False)
            return medium.fetch(0, medium.size())
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(f"the file {full} does not exist") from None
        except OSError as error:
            raise storage_error(error, full) from error
        finally:
            medium.rest()

    def write_path(self, path: str, content: bytes) -> str:
        """Write a file, with the folders above it, and give its full path. StorageError if that fails: what was
        there before is there still."""
        full = self._resolve_path(path)
        folder = os.path.dirname(full)
        temporary = os.path.join(folder, f".{os.urandom(16).hex()}")
        disk = current_settings().durability == "disk"
        try:
            self._make_folder(folder, disk)
            _write_new(temporary, content, disk)
            try:
                _files.replace(temporary, full)
            except OSError:
                _files.unlink(temporary)
                raise
            if disk:
                _files.sync_folder(folder)
        except OSError as error:
            raise storage_error(error, full) from error
        return full

    def _make_folder(self, folder: str, disk: bool) -> None:
        try:
            _files.make_private_folder(folder, durable=disk)
        except PermissionError:
            if not modes.S_ISDIR(os.stat(folder).st_mode):  # a link to a folder will do, and so will a shared one
                raise

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalFileSystem) and self.basepath == other.basepath

    def __hash__(self) -> int:
        return hash(self.basepath)

    def __repr__(self) -> str:
        return f"LocalFileSystem({self.basepath!r})"


def _write_new(path: str, content: bytes, disk: bool) -> None:
    descriptor = _files.open_new(path)
    whole = False
    try:
        left = content
        while left:
            written = _files.write(descriptor, left)  # falls short above 2 GiB, and on a disk that is nearly full
            if not written:
                raise NoSpace(f"{path}: only a part could be written; free space and try again")
            left = left[written:]
        if disk:
            _files.sync_full(descriptor)
        whole = True
    finally:
        _files.close(descriptor)
        if not whole:
            _files.unlink(path)


class MemoryStorage:
    """Results that end with the process."""

    private = True

    def __init__(self) -> None:
        self._mutex = new_lock()  # guards the two below
        self._contents: dict[str, tuple[int, bytes]] = {}
        self._writes = 0

    def version(self, path: str) -> object:
        """What changes when the path is written anew; None when there is nothing."""
        found = self._contents.get(path)
        return found and found[0]

    def read_path(self, path: str) -> bytes:
        """What was written under a path; ValueError if nothing was."""
        found = self._contents.get(path)
        if found is None:
            raise ValueError(f"the result {path!r} does not exist in this process")
        return found[1]

    def write_path(self, path: str, content: bytes) -> str:
        """Keep `content` under a path."""
        with self._mutex:
            self._writes += 1
            self._contents[path] = self._writes, bytes(content)
        return path

    def clear(self) -> None:
        """Forget everything."""
        with self._mutex:
            self._contents.clear()

    def __deepcopy__(self, memo: object) -> MemoryStorage:
        return self  # a copy of a cache policy means the same results

    def __repr__(self) -> str:
        return f"<MemoryStorage of {len(self._contents)} results>"


_in_memory = MemoryStorage()


def default_storage() -> Storage:
    """Where results go that were given no storage: the folder of the settings, else ``storage`` in the home."""
    folder = current_settings().local_storage_path
    if folder is not None:
        return LocalFileSystem(folder)
    home = resolve_home()
    return _in_memory if home == MEMORY else LocalFileSystem(os.path.join(home, "storage"))


def as_storage(given: Any) -> Storage:
    """The storage that an option means: a storage object as it is, a path (also as text) as the folder there."""
    if hasattr(given, "read_path") and hasattr(given, "write_path"):
        storage: Storage = given
        return storage
    if isinstance(given, (str, os.PathLike)):
        return LocalFileSystem(given)
    raise TypeError(
        f"a result storage is a path or an object with read_path and write_path, not {type(given).__name__}: {given!r}"
    )
